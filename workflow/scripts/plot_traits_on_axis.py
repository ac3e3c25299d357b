"""Traits ranked by their cosine with the axis."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.figures import plot_traits_on_axis

plot_traits_on_axis(
    traits_path=snakemake.input.traits,
    svg_path=snakemake.output.svg,
    html_path=snakemake.output.html,
    max_labels=snakemake.params.max_labels,
)
