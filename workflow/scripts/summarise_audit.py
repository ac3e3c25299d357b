"""The audit on one page."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.audit import summarise_audit

summarise_audit(
    sample_path=snakemake.input.sample,
    second_path=snakemake.input.second,
    agreement_path=snakemake.input.agreement,
    confusion_path=snakemake.input.confusion,
    groups_path=snakemake.input.groups,
    axes_path=snakemake.input.axes,
    target_layer=snakemake.params.target_layer,
    audit_path=snakemake.output.audit,
)
