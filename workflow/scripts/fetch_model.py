"""Turn a packaged or local GGUF file into a Hugging Face folder."""

from axiskit.logs import log_to

log_to(snakemake.log[0])

from axiskit.models import fetch_model

fetch_model(
    source=snakemake.params.source,
    folder=snakemake.output.folder,
)
