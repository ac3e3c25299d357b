"""Score a shard's role responses."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.devices import lease_gpus

lease_gpus(snakemake.resources.gpu)

from axiskit.judging import judge_responses

judge_responses(
    responses_path=snakemake.input.responses,
    default_role_path=snakemake.input.default_role,
    scores_path=snakemake.output.scores,
    journal_folder=f"results/{snakemake.wildcards.model}/journal/judge_responses",
    shard=snakemake.wildcards.shard,
    display_name=snakemake.params.display_name,
    model_path=snakemake.params.model_path,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    chat_template_kwargs=snakemake.params.chat_template_kwargs,
    backend=snakemake.params.backend,
    thresholds=snakemake.params.thresholds,
    max_unscored=snakemake.params.max_unscored,
    tokens_per_batch=snakemake.config["activations"]["tokens_per_batch"],
)
