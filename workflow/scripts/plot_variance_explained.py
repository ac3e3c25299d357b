"""Variance explained by components."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.figures import draw_variance_explained

draw_variance_explained(
    variance_path=snakemake.input.variance,
    svg_path=snakemake.output.svg,
)
