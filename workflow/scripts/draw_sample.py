"""Draw a sample of scored responses."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.audit import draw_sample

draw_sample(
    responses_paths=snakemake.input.responses,
    scores_paths=snakemake.input.scores,
    role_paths=snakemake.input.roles,
    sample_path=snakemake.output.sample,
    n_responses=snakemake.params.n_responses,
)
