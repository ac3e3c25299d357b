# in:  all responses (for the counts), scores and activations
# out: results/{model}/role_vectors.pt, and roles.parquet: every role, also those left out and why
rule compute_role_vectors:
    input:
        roles=list(ROLE_FILES.values()),
        responses=expand("results/{{model}}/responses/{shard}.parquet", shard=SHARDS),
        scores=expand("results/{{model}}/scores/{shard}.parquet", shard=SHARDS),
        activations=expand("results/{{model}}/activations/{shard}.pt", shard=SHARDS),
    output:
        role_vectors="results/{model}/role_vectors.pt",
        roles="results/{model}/roles.parquet",
    log:
        "results/{model}/logs/compute_role_vectors.log",
    benchmark:
        "results/{model}/benchmarks/compute_role_vectors.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),
    params:
        min_score=CFG.vectors.min_score,
        min_responses=CFG.vectors.min_responses,
        min_roles=CFG.vectors.min_roles,
        recipe=RECIPE["compute_role_vectors"],
    message:
        "Averaging activations by role"
    script:
        "../workflow/scripts/compute_role_vectors.py"
