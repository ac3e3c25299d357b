# in:  the shard's responses, the default's prompts, the model (it is its own offline judge)
# out: results/{model}/scores/{shard}.parquet, one row a role response
# A verdict is in results/{model}/journal/judge_responses/ at once: none is asked for twice.
rule judge_responses:
    input:
        responses="results/{model}/responses/{shard}.parquet",
        default_role=DEFAULT_ROLE,
        model=model_files,
    output:
        scores="results/{model}/scores/{shard}.parquet",
    log:
        "results/{model}/logs/judge_responses/{shard}.log",
    benchmark:
        "results/{model}/benchmarks/judge_responses/{shard}.tsv"
    conda:
        "../envs/axiskit.yaml"
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=360,
    params:
        display_name=DISPLAY_NAME,
        model_path=MODEL_PATH,
        revision=CFG.model.revision,
        dtype=CFG.model.dtype,
        chat_template_kwargs=CFG.model.chat_template_kwargs,
        backend=CFG.judge.backend,
        thresholds=CFG.judge.thresholds,
        max_unscored=CFG.judge.max_unscored,
        recipe=RECIPE["judge_responses"],
    message:
        "Judging responses, shard {wildcards.shard}"
    script:
        "../workflow/scripts/judge_responses.py"
