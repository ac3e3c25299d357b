"""Principal components of the role vectors."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.persona_space import analyse_persona_space

analyse_persona_space(
    role_vectors_path=snakemake.input.role_vectors,
    axis_path=snakemake.input.axis,
    roles_path=snakemake.input.roles,
    persona_space_path=snakemake.output.persona_space,
    personas_path=snakemake.output.personas,
    layers_path=snakemake.output.layers,
    variance_path=snakemake.output.variance,
    target_layer_setting=snakemake.params.target_layer,
)
