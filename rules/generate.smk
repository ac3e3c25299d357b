# in:  the shard's role files, the questions, the model
# out: results/{model}/responses/{shard}.parquet, one row a rollout
# A finished row is in results/{model}/journal/generate_responses/ at once: a killed job goes on.
rule generate_responses:
    input:
        roles=shard_roles,
        questions=QUESTIONS,
        model=model_files,
    output:
        responses="results/{model}/responses/{shard}.parquet",
    log:
        "results/{model}/logs/generate_responses/{shard}.log",
    benchmark:
        "results/{model}/benchmarks/generate_responses/{shard}.tsv"
    priority: 1  # what all others wait for comes first
    conda:
        GENERATION_ENV
    threads: model_threads
    resources:
        mem_mb=growing(MODEL_MEM_MB),
        runtime=growing(720),
        gpu=MODEL_GPUS,
    params:
        name=MODEL,
        display_name=DISPLAY_NAME,
        model_path=MODEL_PATH,
        revision=CFG.model.revision,
        dtype=CFG.model.dtype,
        chat_template_kwargs=CFG.model.chat_template_kwargs,
        n_questions=CFG.questions.count,
        prompts_per_role=CFG.prompts_per_role,
        default_prompts=CFG.default_prompts,
        engine=CFG.generation.engine,
        temperature=CFG.generation.temperature,
        top_p=CFG.generation.top_p,
        max_new_tokens=CFG.generation.max_new_tokens,
        seed=CFG.generation.seed,
        recipe=RECIPE["generate_responses"],
    message:
        "Generating responses, shard {wildcards.shard}"
    script:
        "../workflow/scripts/generate_responses.py"
