"""Roles along the axis."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.figures import plot_roles_on_axis

plot_roles_on_axis(
    projections_path=snakemake.input.projections,
    personas_path=snakemake.input.personas,
    svg_path=snakemake.output.svg,
    html_path=snakemake.output.html,
    max_labels=snakemake.params.max_labels,
)
