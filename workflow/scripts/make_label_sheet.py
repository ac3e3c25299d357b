"""Make a sheet for labels by people."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.label_sheet import make_label_sheet

make_label_sheet(
    sample_path=snakemake.input.sample,
    role_paths=snakemake.input.roles,
    sheet_path=snakemake.output.sheet,
)
