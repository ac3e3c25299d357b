"""Mean residual stream over each response's tokens."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.devices import lease_gpus

lease_gpus(snakemake.resources.gpu)

from axiskit.activations import extract_activations

extract_activations(
    responses_path=snakemake.input.responses,
    activations_path=snakemake.output.activations,
    checkpoint_folder=f"results/{snakemake.wildcards.model}/journal/extract_activations",
    shard=snakemake.wildcards.shard,
    model_path=snakemake.params.model_path,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    chat_template_kwargs=snakemake.params.chat_template_kwargs,
    layers=snakemake.params.layers,
    tokens_per_batch=snakemake.config["activations"]["tokens_per_batch"],
)
