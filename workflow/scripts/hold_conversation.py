"""Answer the user turns of all scripts under one condition."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.devices import lease_gpus

lease_gpus(snakemake.resources.gpu)

from axiskit.conversations import hold_conversation

hold_conversation(
    script_paths=snakemake.input.scripts,
    axis_path=snakemake.input.axis or None,
    capping_config_path=snakemake.input.capping_config or None,
    conversation_paths=snakemake.output.conversations,
    journal_folder=f"results/{snakemake.wildcards.model}/journal/hold_conversation",
    condition=snakemake.wildcards.condition,
    experiment=snakemake.params.experiment,
    away_coefficient=snakemake.params.away_coefficient,
    target_layer_setting=snakemake.params.target_layer,
    name=snakemake.params.name,
    model_path=snakemake.params.model_path,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    chat_template_kwargs=snakemake.params.chat_template_kwargs,
    temperature=snakemake.params.temperature,
    top_p=snakemake.params.top_p,
    max_turns=snakemake.params.max_turns,
    max_new_tokens=snakemake.params.max_new_tokens,
    seed=snakemake.params.seed,
    batch_size=snakemake.config["generation"]["batch_size"],
)
