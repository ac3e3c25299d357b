"""Cosine of the axis and PC1 by layer."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.figures import plot_axis_pc1_cosine

plot_axis_pc1_cosine(
    layers_path=snakemake.input.layers,
    svg_path=snakemake.output.svg,
)
