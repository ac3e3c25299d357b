"""Draw where the turns of the conversations stand along the axis."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.figures import plot_trajectories

plot_trajectories(
    trajectories_path=snakemake.input.trajectories,
    projections_path=snakemake.input.projections,
    svg_path=snakemake.output.svg,
    html_path=snakemake.output.html,
)
