# The Assistant Axis of a chat model, from role prompts to figures. ARCHITECTURE.md is the map.
from snakemake.utils import min_version

min_version("9.14")


configfile: workflow.source_path("config/config.yaml")


include: "rules/common.smk"
include: "rules/fetch.smk"
include: "rules/generate.smk"
include: "rules/judge.smk"
include: "rules/extract.smk"
include: "rules/vectors.smk"
include: "rules/axis.smk"
include: "rules/traits.smk"
include: "rules/project.smk"
include: "rules/capping.smk"
include: "rules/conversations.smk"
include: "rules/persona_space.smk"
include: "rules/figures.smk"
include: "rules/summary.smk"
include: "rules/audit.smk"


report: "workflow/report/workflow.rst"


wildcard_constraints:
    shard=r"(traits-)?\d{3}",
    condition="|".join(CONDITIONS),


rule all:
    default_target: True
    input:
        ALL_RESULTS,


rule audit:
    input:
        AUDIT_RESULTS,


onstart:
    require_engine()
    require_judge_key()
    require_gpus()
    require_room()


onsuccess:
    print_summary()
