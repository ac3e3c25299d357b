"""Cosine of each trait with the axis."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.traits import rank_traits

rank_traits(
    trait_vectors_path=snakemake.input.trait_vectors,
    axis_path=snakemake.input.axis,
    traits_path=snakemake.output.traits,
    target_layer_setting=snakemake.params.target_layer,
)
