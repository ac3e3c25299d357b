"""A short summary, expectations checked."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.summary import summarise_axis

summarise_axis(
    roles_path=snakemake.input.roles,
    projections_path=snakemake.input.projections,
    personas_path=snakemake.input.personas,
    layers_path=snakemake.input.layers,
    axis_path=snakemake.input.axis,
    summary_path=snakemake.output.summary,
)
