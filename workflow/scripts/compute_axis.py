"""Default vector minus mean of the role vectors."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.axis import write_axis

write_axis(
    role_vectors_path=snakemake.input.role_vectors,
    axis_path=snakemake.output.axis,
)
