# in:  scripts of user turns, the model; for {condition} capped and away the axis (and the floors)
# out: results/{model}/conversations/{name}.{condition}.json, one for each script
# An answer is in results/{model}/journal/hold_conversation/ at once: a killed job goes on.
rule hold_conversation:
    input:
        scripts=list(SCRIPTS.values()),
        model=model_files,
        axis=branch(
            lambda wildcards: wildcards.condition != "unsteered",
            then="results/{model}/axis.pt",
        ),
        capping_config=branch(
            lambda wildcards: wildcards.condition == "capped",
            then="results/{model}/capping_config.pt",
        ),
    output:
        conversations=expand(
            "results/{{model}}/conversations/{name}.{{condition}}.json", name=SCRIPTS
        ),
    log:
        "results/{model}/logs/hold_conversation/{condition}.log",
    benchmark:
        "results/{model}/benchmarks/hold_conversation/{condition}.tsv"
    conda:
        "../envs/axiskit.yaml"
    threads: model_threads
    resources:
        mem_mb=growing(MODEL_MEM_MB),
        runtime=growing(360),
        gpu=MODEL_GPUS,
    params:
        name=MODEL,
        model_path=MODEL_PATH,
        revision=CFG.model.revision,
        dtype=CFG.model.dtype,
        chat_template_kwargs=CFG.model.chat_template_kwargs,
        experiment=branch(
            lambda wildcards: wildcards.condition == "capped",
            then=CFG.capping.experiment,
            otherwise="",
        ),
        away_coefficient=branch(
            lambda wildcards: wildcards.condition == "away",
            then=CFG.conversations.away_coefficient,
            otherwise="",
        ),
        target_layer=branch(
            lambda wildcards: wildcards.condition == "away",
            then=CFG.model.target_layer,
            otherwise="",
        ),
        temperature=CFG.generation.temperature,
        top_p=CFG.generation.top_p,
        max_turns=CFG.conversations.max_turns,
        max_new_tokens=CFG.conversations.max_new_tokens,
        seed=CFG.generation.seed,
        recipe=RECIPE["hold_conversation"],
    message:
        "Holding conversations, {wildcards.condition}"
    script:
        "../workflow/scripts/hold_conversation.py"


# in:  held conversations, transcripts that the config names, the axis, the model
# out: results/{model}/trajectories.parquet, one row an assistant turn
rule project_conversations:
    input:
        conversations=expand(
            "results/{{model}}/conversations/{name}.{condition}.json",
            name=SCRIPTS,
            condition=CONDITIONS,
        ),
        transcripts=CFG.conversations.extra_transcripts,
        axis="results/{model}/axis.pt",
        model=model_files,
    output:
        trajectories="results/{model}/trajectories.parquet",
    log:
        "results/{model}/logs/project_conversations.log",
    benchmark:
        "results/{model}/benchmarks/project_conversations.tsv"
    conda:
        "../envs/axiskit.yaml"
    threads: model_threads
    resources:
        mem_mb=growing(MODEL_MEM_MB),
        runtime=growing(120),
        gpu=MODEL_GPUS,
    params:
        model_path=MODEL_PATH,
        revision=CFG.model.revision,
        dtype=CFG.model.dtype,
        chat_template_kwargs=CFG.model.chat_template_kwargs,
        target_layer=CFG.model.target_layer,
        recipe=RECIPE["project_conversations"],
    message:
        "Projecting conversations turn by turn"
    script:
        "../workflow/scripts/project_conversations.py"
