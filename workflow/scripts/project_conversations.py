"""Project every assistant turn of the conversations on the axis."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.devices import lease_gpus

lease_gpus(snakemake.resources.gpu)

from axiskit.trajectories import project_conversations

project_conversations(
    conversation_paths=snakemake.input.conversations,
    transcript_paths=snakemake.input.transcripts,
    axis_path=snakemake.input.axis,
    trajectories_path=snakemake.output.trajectories,
    target_layer_setting=snakemake.params.target_layer,
    model_path=snakemake.params.model_path,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    chat_template_kwargs=snakemake.params.chat_template_kwargs,
)
