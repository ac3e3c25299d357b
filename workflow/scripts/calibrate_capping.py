"""Turn the projections of all rollouts into floors for activation capping."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.capping import calibrate_capping

calibrate_capping(
    projections_path=snakemake.input.projections,
    axis_path=snakemake.input.axis,
    capping_config_path=snakemake.output.capping_config,
    capping_path=snakemake.output.capping,
    widths=snakemake.params.widths,
    step=snakemake.params.step,
    floor_quantiles=snakemake.params.floor_quantiles,
)
