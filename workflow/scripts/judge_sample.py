"""Score the sample: by the second judge, or by the first once more."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.devices import lease_gpus

judge = snakemake.config["audit_judges"][snakemake.wildcards.judge]
if judge["backend"] == "likelihood":  # a hosted judge needs no GPU
    lease_gpus(snakemake.resources.gpu)

from axiskit.audit import judge_sample

judge_sample(
    sample_path=snakemake.input.sample,
    role_paths=snakemake.input.roles,
    default_role_path=snakemake.input.default_role,
    scores_path=snakemake.output.scores,
    journal_folder=f"results/{snakemake.wildcards.model}/journal",
    judge_name=snakemake.wildcards.judge,
    judge=judge,
    display_name=snakemake.params.display_name,
    model_path=snakemake.params.model_path,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    chat_template_kwargs=snakemake.params.chat_template_kwargs,
    tokens_per_batch=snakemake.config["activations"]["tokens_per_batch"],
)
