# in:  all activations, the axis
# out: results/{model}/projections.parquet, one row a rollout, one column a layer
rule project_responses:
    input:
        responses=expand("results/{{model}}/responses/{shard}.parquet", shard=SHARDS),
        activations=expand("results/{{model}}/activations/{shard}.pt", shard=SHARDS),
        axis="results/{model}/axis.pt",
    output:
        projections="results/{model}/projections.parquet",
    log:
        "results/{model}/logs/project_responses.log",
    benchmark:
        "results/{model}/benchmarks/project_responses.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),
    params:
        recipe=RECIPE["project_responses"],
    message:
        "Projecting all responses on the axis"
    script:
        "../workflow/scripts/project_responses.py"
