# in:  role vectors, the axis, the roles' groups
# out: results/{model}/persona_space.pt (principal components of the role vectors by layer), and tables
rule analyse_persona_space:
    input:
        role_vectors="results/{model}/role_vectors.pt",
        roles="results/{model}/roles.parquet",
        axis="results/{model}/axis.pt",
    output:
        persona_space="results/{model}/persona_space.pt",
        personas="results/{model}/personas.parquet",
        layers="results/{model}/layers.parquet",
        variance="results/{model}/variance.parquet",
    log:
        "results/{model}/logs/analyse_persona_space.log",
    benchmark:
        "results/{model}/benchmarks/analyse_persona_space.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        target_layer=CFG.model.target_layer,
        recipe=RECIPE["analyse_persona_space"],
    message:
        "Analysing persona space"
    script:
        "../workflow/scripts/analyse_persona_space.py"
