"""Agreement, confusion and rates by group."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.agreement import compare_judges

compare_judges(
    sample_path=snakemake.input.sample,
    repeat_path=snakemake.input.repeat,
    second_path=snakemake.input.second,
    label_paths=snakemake.input.labels,
    agreement_path=snakemake.output.agreement,
    confusion_path=snakemake.output.confusion,
    groups_path=snakemake.output.groups,
)
