# in:  the shard's responses; by likelihood the default's prompts and the model (its own offline
#      judge), by a hosted judge the role files, and no model
# out: results/{model}/scores/{shard}.parquet, one row a role response
# A verdict is in results/{model}/journal/{rule}/ at once: none is asked for twice.
if CFG.judge.is_hosted:

    rule ask_judge:
        input:
            responses="results/{model}/responses/{shard}.parquet",
            roles=shard_roles,
        output:
            scores="results/{model}/scores/{shard}.parquet",
        log:
            "results/{model}/logs/ask_judge/{shard}.log",
        benchmark:
            "results/{model}/benchmarks/ask_judge/{shard}.tsv"
        localrule: True  # on a cluster where Snakemake runs: nodes often have no network
        conda:
            "../envs/judge.yaml"
        threads: 1  # one job asks at a time, and waits for answers
        resources:
            mem_mb=growing(2000),
            runtime=2880,  # a batch can take a day
            judging=1,  # --resources judging=1 starts one at a time
        params:
            model=CFG.judge.model,
            base_url=CFG.judge.base_url,
            extra_body=CFG.judge.extra_body,
            max_tokens=CFG.judge.max_tokens,
            max_unscored=CFG.judge.max_unscored,
            recipe=RECIPE["ask_judge"],
        message:
            "Asking the judge, shard {wildcards.shard}"
        script:
            "../workflow/scripts/ask_judge.py"

else:

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
        threads: model_threads
        resources:
            mem_mb=growing(MODEL_MEM_MB),
            runtime=growing(360),
            gpu=MODEL_GPUS,
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
