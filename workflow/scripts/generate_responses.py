"""Answer every question as every role of a shard."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.devices import lease_gpus

lease_gpus(snakemake.resources.gpu)

from axiskit.generation import generate_responses

generate_responses(
    role_paths=snakemake.input.roles,
    questions_path=snakemake.input.questions,
    responses_path=snakemake.output.responses,
    journal_folder=f"results/{snakemake.wildcards.model}/journal/generate_responses",
    shard=snakemake.wildcards.shard,
    name=snakemake.params.name,
    display_name=snakemake.params.display_name,
    model_path=snakemake.params.model_path,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    chat_template_kwargs=snakemake.params.chat_template_kwargs,
    n_questions=snakemake.params.n_questions,
    prompts_per_role=snakemake.params.prompts_per_role,
    default_prompts=snakemake.params.default_prompts,
    engine=snakemake.params.engine,
    temperature=snakemake.params.temperature,
    top_p=snakemake.params.top_p,
    max_new_tokens=snakemake.params.max_new_tokens,
    seed=snakemake.params.seed,
    layers=snakemake.config["activations"]["layers"],
    target_layer_setting=snakemake.config["model"]["target_layer"],
    batch_size=snakemake.config["generation"]["batch_size"],
    n_gpus=snakemake.config["resources"]["gpus"],
    vllm=snakemake.config["generation"]["vllm"],
    n_rollouts_in_all=snakemake.config["n_rollouts"],
)
