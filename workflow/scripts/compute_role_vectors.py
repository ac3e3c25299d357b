"""Average activations by role."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.vectors import compute_role_vectors

compute_role_vectors(
    role_paths=snakemake.input.roles,
    responses_paths=snakemake.input.responses,
    scores_paths=snakemake.input.scores,
    activations_paths=snakemake.input.activations,
    role_vectors_path=snakemake.output.role_vectors,
    roles_path=snakemake.output.roles,
    min_score=snakemake.params.min_score,
    min_responses=snakemake.params.min_responses,
    min_roles=snakemake.params.min_roles,
)
