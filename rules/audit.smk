# in:  scores and responses of a run; a second judge; labels by people, if there are any
# out: results/{model}/audit/: agreement, confusion, rates by group, cosines between axes, a sheet for
#      people, and audit.txt. On demand: snakemake audit
rule draw_sample:
    input:
        responses=expand("results/{{model}}/responses/{shard}.parquet", shard=SHARDS),
        scores=expand("results/{{model}}/scores/{shard}.parquet", shard=SHARDS),
        roles=list(ROLE_FILES.values()),
    output:
        sample="results/{model}/audit/sample.parquet",
    log:
        "results/{model}/logs/draw_sample.log",
    benchmark:
        "results/{model}/benchmarks/draw_sample.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(15),
    params:
        n_responses=CFG.audit.n_responses,
        recipe=RECIPE["draw_sample"],
    message:
        "Drawing a sample of scored responses"
    script:
        "../workflow/scripts/draw_sample.py"


rule judge_sample:
    input:
        sample="results/{model}/audit/sample.parquet",
        roles=list(ROLE_FILES.values()),
        default_role=DEFAULT_ROLE,
        model=audit_model_files,
    output:
        scores="results/{model}/audit/{judge}.parquet",
    log:
        "results/{model}/logs/judge_sample/{judge}.log",
    benchmark:
        "results/{model}/benchmarks/judge_sample/{judge}.tsv"
    wildcard_constraints:
        judge="repeat|second",
    conda:
        "../envs/judge.yaml"
    threads: lambda wildcards: (1 if audit_judge(wildcards).is_hosted else model_threads(wildcards))
    resources:
        mem_mb=lambda wildcards, attempt: attempt
        * (2000 if audit_judge(wildcards).is_hosted else MODEL_MEM_MB),
        gpu=lambda wildcards: 0 if audit_judge(wildcards).is_hosted else MODEL_GPUS,
        runtime=2880,  # a batch can take a day
    params:
        judge=lambda wildcards: audit_judge(wildcards).decides,
        display_name=DISPLAY_NAME,
        model_path=MODEL_PATH,
        revision=CFG.model.revision,
        dtype=CFG.model.dtype,
        chat_template_kwargs=CFG.model.chat_template_kwargs,
        recipe=RECIPE["judge_sample"],
    message:
        "Judging the sample: {wildcards.judge}"
    script:
        "../workflow/scripts/judge_sample.py"


rule make_label_sheet:
    input:
        sample="results/{model}/audit/sample.parquet",
        roles=list(ROLE_FILES.values()),
    output:
        sheet="results/{model}/audit/sheet.html",
    log:
        "results/{model}/logs/make_label_sheet.log",
    benchmark:
        "results/{model}/benchmarks/make_label_sheet.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        recipe=RECIPE["make_label_sheet"],
    message:
        "Making a sheet for labels by people"
    script:
        "../workflow/scripts/make_label_sheet.py"


rule compare_judges:
    input:
        sample="results/{model}/audit/sample.parquet",
        repeat="results/{model}/audit/repeat.parquet",
        second="results/{model}/audit/second.parquet",
        labels=CFG.audit.labels,
    output:
        agreement="results/{model}/audit/agreement.parquet",
        confusion="results/{model}/audit/confusion.parquet",
        groups="results/{model}/audit/groups.parquet",
    log:
        "results/{model}/logs/compare_judges.log",
    benchmark:
        "results/{model}/benchmarks/compare_judges.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        recipe=RECIPE["compare_judges"],
    message:
        "Comparing judges"
    script:
        "../workflow/scripts/compare_judges.py"


rule compare_axes:
    input:
        sample="results/{model}/audit/sample.parquet",
        second="results/{model}/audit/second.parquet",
        scores=expand("results/{{model}}/scores/{shard}.parquet", shard=SHARDS),
        activations=expand("results/{{model}}/activations/{shard}.pt", shard=SHARDS),
    output:
        axes="results/{model}/audit/axes.parquet",
    log:
        "results/{model}/logs/compare_axes.log",
    benchmark:
        "results/{model}/benchmarks/compare_axes.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),
    params:
        default_role=DEFAULT_NAME,
        recipe=RECIPE["compare_axes"],
    message:
        "Comparing the axes under each judge"
    script:
        "../workflow/scripts/compare_axes.py"


rule summarise_audit:
    input:
        sample="results/{model}/audit/sample.parquet",
        second="results/{model}/audit/second.parquet",
        agreement="results/{model}/audit/agreement.parquet",
        confusion="results/{model}/audit/confusion.parquet",
        groups="results/{model}/audit/groups.parquet",
        axes="results/{model}/audit/axes.parquet",
    output:
        audit="results/{model}/audit/audit.txt",
    log:
        "results/{model}/logs/summarise_audit.log",
    benchmark:
        "results/{model}/benchmarks/summarise_audit.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        target_layer=CFG.model.target_layer,
        recipe=RECIPE["summarise_audit"],
    message:
        "Summarising the audit"
    script:
        "../workflow/scripts/summarise_audit.py"
