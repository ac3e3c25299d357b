# in:  the shard's responses, the model
# out: results/{model}/activations/{shard}.pt, [rollout, layer, hidden] bfloat16
rule extract_activations:
    input:
        responses="results/{model}/responses/{shard}.parquet",
        model=model_files,
    output:
        activations="results/{model}/activations/{shard}.pt",
    log:
        "results/{model}/logs/extract_activations/{shard}.log",
    benchmark:
        "results/{model}/benchmarks/extract_activations/{shard}.tsv"
    conda:
        "../envs/axiskit.yaml"
    threads: model_threads
    resources:
        mem_mb=growing(MODEL_MEM_MB),
        runtime=growing(360),
        gpu=MODEL_GPUS,
    params:
        model_path=MODEL_PATH,
        revision=CFG.model.revision,
        dtype=CFG.model.dtype,
        chat_template_kwargs=CFG.model.chat_template_kwargs,
        layers=CFG.activations.layers,
        recipe=RECIPE["extract_activations"],
    message:
        "Extracting activations, shard {wildcards.shard}"
    script:
        "../workflow/scripts/extract_activations.py"
