"""Average activations by trait, positive pole less negative."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.traits import compute_trait_vectors

compute_trait_vectors(
    trait_paths=snakemake.input.traits,
    scores_paths=snakemake.input.scores,
    activations_paths=snakemake.input.activations,
    trait_vectors_path=snakemake.output.trait_vectors,
    judge_reads=snakemake.params.judge_reads,
    min_score=snakemake.params.min_score,
    min_responses=snakemake.params.min_responses,
)
