"""Project every response on the axis."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.projections import project_responses

project_responses(
    responses_paths=snakemake.input.responses,
    activations_paths=snakemake.input.activations,
    axis_path=snakemake.input.axis,
    projections_path=snakemake.output.projections,
)
