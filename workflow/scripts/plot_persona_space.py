"""Persona space in three components."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.figures import plot_persona_space

plot_persona_space(
    personas_path=snakemake.input.personas,
    variance_path=snakemake.input.variance,
    svg_path=snakemake.output.svg,
    html_path=snakemake.output.html,
    max_labels=snakemake.params.max_labels,
)
