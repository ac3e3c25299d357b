# in:  responses, scores and activations of the trait shards, from the rules that make those of roles
# out: results/{model}/trait_vectors.pt (positive less negative pole), traits.parquet (cosines with
#      the axis). Only if the config includes traits.
if TRAIT_FILES:

    rule compute_trait_vectors:
        input:
            traits=list(TRAIT_FILES.values()),
            scores=expand(
                "results/{{model}}/scores/{shard}.parquet", shard=TRAIT_SHARDS
            ),
            activations=expand(
                "results/{{model}}/activations/{shard}.pt", shard=TRAIT_SHARDS
            ),
        output:
            trait_vectors="results/{model}/trait_vectors.pt",
        log:
            "results/{model}/logs/compute_trait_vectors.log",
        benchmark:
            "results/{model}/benchmarks/compute_trait_vectors.tsv"
        conda:
            "../envs/axiskit.yaml"
        resources:
            mem_mb=growing(8000),
            runtime=growing(60),
        params:
            judge_reads=CFG.judge.is_hosted,
            min_score=(
                CFG.traits.min_score if CFG.judge.is_hosted else CFG.vectors.min_score
            ),
            min_responses=CFG.vectors.min_responses,
            recipe=RECIPE["compute_trait_vectors"],
        message:
            "Averaging activations by trait"
        script:
            "../workflow/scripts/compute_trait_vectors.py"

    rule rank_traits:
        input:
            trait_vectors="results/{model}/trait_vectors.pt",
            axis="results/{model}/axis.pt",
        output:
            traits="results/{model}/traits.parquet",
        log:
            "results/{model}/logs/rank_traits.log",
        benchmark:
            "results/{model}/benchmarks/rank_traits.tsv"
        conda:
            "../envs/axiskit.yaml"
        resources:
            mem_mb=growing(4000),
            runtime=growing(15),
        params:
            target_layer=CFG.model.target_layer,
            recipe=RECIPE["rank_traits"],
        message:
            "Ranking traits by their cosine with the axis"
        script:
            "../workflow/scripts/rank_traits.py"
