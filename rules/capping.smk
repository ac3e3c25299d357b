# in:  projections of all rollouts, the axis
# out: results/{model}/capping_config.pt (published layout), capping.parquet (floors by layer)
rule calibrate_capping:
    input:
        projections="results/{model}/projections.parquet",
        axis="results/{model}/axis.pt",
    output:
        capping_config="results/{model}/capping_config.pt",
        capping="results/{model}/capping.parquet",
    log:
        "results/{model}/logs/calibrate_capping.log",
    benchmark:
        "results/{model}/benchmarks/calibrate_capping.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(15),
    params:
        widths=CFG.capping.widths,
        step=CFG.capping.step,
        floor_quantiles=CFG.capping.floor_quantiles,
        recipe=RECIPE["calibrate_capping"],
    message:
        "Calibrating floors for activation capping"
    script:
        "../workflow/scripts/calibrate_capping.py"
