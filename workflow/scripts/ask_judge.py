"""Have a shard's role responses read by a hosted judge."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.judging import ask_judge

ask_judge(
    responses_path=snakemake.input.responses,
    role_paths=snakemake.input.roles,
    scores_path=snakemake.output.scores,
    journal_folder=f"results/{snakemake.wildcards.model}/journal/ask_judge",
    shard=snakemake.wildcards.shard,
    model=snakemake.params.model,
    base_url=snakemake.params.base_url,
    extra_body=snakemake.params.extra_body,
    max_tokens=snakemake.params.max_tokens,
    max_unscored=snakemake.params.max_unscored,
    limits=snakemake.config["judge"],
)
