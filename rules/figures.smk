# in:  the tables of a run
# out: results/{model}/figures/, with captions in the report (snakemake --report report.html)
rule plot_roles_on_axis:
    input:
        projections="results/{model}/projections.parquet",
        personas="results/{model}/personas.parquet",
    output:
        svg=report(
            "results/{model}/figures/roles_on_axis.svg",
            category="Figures",
            caption="../workflow/report/roles_on_axis.rst",
            labels={"figure": "roles along the axis", "form": "static"},
        ),
        html=report(
            "results/{model}/figures/roles_on_axis.html",
            category="Figures",
            caption="../workflow/report/roles_on_axis.rst",
            labels={"figure": "roles along the axis", "form": "interactive"},
        ),
    log:
        "results/{model}/logs/plot_roles_on_axis.log",
    benchmark:
        "results/{model}/benchmarks/plot_roles_on_axis.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        max_labels=CFG.figures.max_labels,
        recipe=RECIPE["plot_roles_on_axis"],
    message:
        "Drawing roles along the axis"
    script:
        "../workflow/scripts/plot_roles_on_axis.py"


rule plot_axis_pc1_cosine:
    input:
        layers="results/{model}/layers.parquet",
    output:
        svg=report(
            "results/{model}/figures/axis_pc1_cosine.svg",
            category="Figures",
            caption="../workflow/report/axis_pc1_cosine.rst",
            labels={"figure": "axis and PC1 by layer", "form": "static"},
        ),
    log:
        "results/{model}/logs/plot_axis_pc1_cosine.log",
    benchmark:
        "results/{model}/benchmarks/plot_axis_pc1_cosine.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        recipe=RECIPE["plot_axis_pc1_cosine"],
    message:
        "Drawing axis and PC1 by layer"
    script:
        "../workflow/scripts/plot_axis_pc1_cosine.py"


rule plot_variance_explained:
    input:
        variance="results/{model}/variance.parquet",
    output:
        svg=report(
            "results/{model}/figures/variance_explained.svg",
            category="Figures",
            caption="../workflow/report/variance_explained.rst",
            labels={"figure": "variance explained", "form": "static"},
        ),
    log:
        "results/{model}/logs/plot_variance_explained.log",
    benchmark:
        "results/{model}/benchmarks/plot_variance_explained.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        recipe=RECIPE["plot_variance_explained"],
    message:
        "Drawing variance explained"
    script:
        "../workflow/scripts/plot_variance_explained.py"


rule plot_persona_space:
    input:
        personas="results/{model}/personas.parquet",
        variance="results/{model}/variance.parquet",
    output:
        svg=report(
            "results/{model}/figures/persona_space.svg",
            category="Figures",
            caption="../workflow/report/persona_space.rst",
            labels={"figure": "persona space", "form": "static"},
        ),
        html=report(
            "results/{model}/figures/persona_space.html",
            category="Figures",
            caption="../workflow/report/persona_space.rst",
            labels={"figure": "persona space", "form": "interactive"},
        ),
    log:
        "results/{model}/logs/plot_persona_space.log",
    benchmark:
        "results/{model}/benchmarks/plot_persona_space.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        max_labels=CFG.figures.max_labels,
        recipe=RECIPE["plot_persona_space"],
    message:
        "Drawing persona space"
    script:
        "../workflow/scripts/plot_persona_space.py"


rule plot_trajectories:
    input:
        trajectories="results/{model}/trajectories.parquet",
        projections="results/{model}/projections.parquet",
    output:
        svg=report(
            "results/{model}/figures/trajectories.svg",
            category="Figures",
            caption="../workflow/report/trajectories.rst",
            labels={"figure": "conversations along the axis", "form": "static"},
        ),
        html=report(
            "results/{model}/figures/trajectories.html",
            category="Figures",
            caption="../workflow/report/trajectories.rst",
            labels={"figure": "conversations along the axis", "form": "interactive"},
        ),
    log:
        "results/{model}/logs/plot_trajectories.log",
    benchmark:
        "results/{model}/benchmarks/plot_trajectories.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        recipe=RECIPE["plot_trajectories"],
    message:
        "Drawing conversations along the axis"
    script:
        "../workflow/scripts/plot_trajectories.py"


rule plot_traits_on_axis:
    input:
        traits="results/{model}/traits.parquet",
    output:
        svg=report(
            "results/{model}/figures/traits_on_axis.svg",
            category="Figures",
            caption="../workflow/report/traits_on_axis.rst",
            labels={"figure": "traits along the axis", "form": "static"},
        ),
        html=report(
            "results/{model}/figures/traits_on_axis.html",
            category="Figures",
            caption="../workflow/report/traits_on_axis.rst",
            labels={"figure": "traits along the axis", "form": "interactive"},
        ),
    log:
        "results/{model}/logs/plot_traits_on_axis.log",
    benchmark:
        "results/{model}/benchmarks/plot_traits_on_axis.tsv"
    conda:
        "../envs/axiskit.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(15),
    params:
        max_labels=CFG.figures.max_labels,
        recipe=RECIPE["plot_traits_on_axis"],
    message:
        "Drawing traits along the axis"
    script:
        "../workflow/scripts/plot_traits_on_axis.py"
