"""Cosine between the axes under each judge and threshold."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.audit import compare_axes

compare_axes(
    sample_path=snakemake.input.sample,
    second_path=snakemake.input.second,
    scores_paths=snakemake.input.scores,
    activations_paths=snakemake.input.activations,
    default_role=snakemake.params.default_role,
    axes_path=snakemake.output.axes,
)
