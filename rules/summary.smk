# in:  the tables of a run
# out: results/{model}/summary.txt: the order along the axis, and whether what is expected holds
rule summarise_axis:
    input:
        roles="results/{model}/roles.parquet",
        projections="results/{model}/projections.parquet",
        personas="results/{model}/personas.parquet",
        layers="results/{model}/layers.parquet",
        axis="results/{model}/axis.pt",
    output:
        summary="results/{model}/summary.txt",
    log:
        "results/{model}/logs/summarise_axis.log",
    benchmark:
        "results/{model}/benchmarks/summarise_axis.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        recipe=RECIPE["summarise_axis"],
    message:
        "Summarising"
    script:
        "../workflow/scripts/summarise_axis.py"
