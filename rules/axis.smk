# in:  role vectors and the default vector
# out: results/{model}/axis.pt, [layer, hidden] float32, pointing to the Assistant
rule compute_axis:
    input:
        role_vectors="results/{model}/role_vectors.pt",
    output:
        axis="results/{model}/axis.pt",
    log:
        "results/{model}/logs/compute_axis.log",
    benchmark:
        "results/{model}/benchmarks/compute_axis.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(15),
    params:
        recipe=RECIPE["compute_axis"],
    message:
        "Computing the Assistant Axis"
    script:
        "../workflow/scripts/compute_axis.py"
