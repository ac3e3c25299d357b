# The validated config, and the functions that name inputs. No rules here.
import os
import sys

from snakemake.exceptions import WorkflowError

SOURCE = os.path.join(workflow.basedir, "src")
sys.path.insert(0, SOURCE)
# scripts find the library in an environment of their own (--sdm conda), too
os.environ.update(
    PYTHONPATH=os.pathsep.join([SOURCE, os.getenv("PYTHONPATH", "")]).rstrip(os.pathsep)
)

from axiskit.config import CONDITIONS, MODEL_FILES, validate_config
from axiskit.errors import AxiskitError, ConfigError
from axiskit.judge_prompts import check_judgeable
from axiskit.questions import load_questions
from axiskit.recipes import RECIPE
from axiskit.roles import find_role_files, load_roles
from axiskit.rollouts import shard_of
from axiskit.traits import find_trait_files, load_trait, trait_shard
from axiskit.transcripts import find_scripts, load_script, load_transcript
from axiskit.workload import plan_workload


def in_workflow(path):
    """A path of the config: from the working directory if it is there, else from the workflow."""
    there = os.path.join(workflow.basedir, path)
    return path if os.path.exists(path) or not os.path.exists(there) else there


def shard_roles(wildcards):
    """The role files of one shard, or the trait files."""
    return [path for path, shard in SHARD_OF.items() if shard == wildcards.shard]


def model_files(_):
    """What a job that loads the model waits for: the fetched folder, or a local folder's files."""
    if CFG.model.must_be_fetched:
        return f"results/{MODEL}/model"
    if os.path.isdir(CFG.model.path):
        return [
            os.path.join(CFG.model.path, name)
            for name in sorted(os.listdir(CFG.model.path))
            if name.endswith(MODEL_FILES)
        ]
    return []  # a Hugging Face id


def audit_judge(wildcards):
    """The judge of an audit's scores: the first again, or the second."""
    return CFG.judge if wildcards.judge == "repeat" else CFG.second_judge


def audit_model_files(wildcards):
    """What a judge of the audit waits for: the model, where it is its own judge."""
    return [] if audit_judge(wildcards).is_hosted else model_files(wildcards)


def model_threads(_):
    """Threads of a job that runs the model: its share of the cores here, or 8 of a cluster's node."""
    on_cluster = workflow.remote_exec or not workflow.local_exec
    if on_cluster or not N_CORES:  # no cores are known in a report, for instance
        return 8
    return max(1, N_CORES // len({*SHARDS, *TRAIT_SHARDS}))


def growing(amount):
    """A resource that grows with each attempt (--retries): what was killed for it gets more."""
    return lambda wildcards, attempt: amount * attempt


try:
    # Snakemake lists the default last; the others overlay it
    CFG = validate_config(
        config, [workflow.configfiles[-1], *workflow.configfiles[:-1]]
    )
    ROLES_DIR = in_workflow(CFG.roles.dir)
    QUESTIONS = in_workflow(CFG.questions.file)
    ROLES = load_roles(
        ROLES_DIR,
        CFG.roles.include,
        prompts_per_role=CFG.prompts_per_role,
        default_prompts=CFG.default_prompts,
    )
    ROLE_FILES = {
        name: str(path)
        for name, path in find_role_files(ROLES_DIR, CFG.roles.include).items()
    }
    if len(ROLES) - 1 < CFG.vectors.min_roles:
        raise ConfigError(
            f"{ROLES_DIR}: {len(ROLES) - 1} roles beside the default, {CFG.vectors.min_roles} needed "
            "(vectors.min_roles); include more (roles.include) or lower it"
        )
    TRAIT_FILES = {
        name: str(path)
        for name, path in find_trait_files(
            in_workflow(CFG.traits.dir), CFG.traits.include
        ).items()
    }
    TRAITS = [
        load_trait(path, n_pairs=CFG.prompts_per_role) for path in TRAIT_FILES.values()
    ]
    QUESTION_TEXTS = load_questions(QUESTIONS, CFG.questions.count)
    SCRIPTS = {
        name: str(path)
        for name, path in find_scripts(
            in_workflow(CFG.conversations.dir), CFG.conversations.include
        ).items()
    }
    TURNS = [
        load_script(path).turns[: CFG.conversations.max_turns]
        for path in SCRIPTS.values()
    ]
    for path in CFG.conversations.extra_transcripts:
        load_transcript(path)
    if CFG.judge.is_hosted or CFG.second_judge.is_hosted:
        for role in ROLES.values():
            if role.kind == "role":
                check_judgeable(role.name, role.description, role.eval_prompt)
    WORKLOAD = plan_workload(CFG, ROLES, QUESTION_TEXTS, TURNS, TRAITS)
except AxiskitError as error:
    raise WorkflowError(f"{type(error).__name__}: {error}")

MODEL = CFG.model.name
MODEL_PATH = f"results/{MODEL}/model" if CFG.model.must_be_fetched else CFG.model.path
DISPLAY_NAME = CFG.model.display_name or MODEL
DEFAULT_NAME = next(name for name, role in ROLES.items() if role.kind == "default")
DEFAULT_ROLE = ROLE_FILES[DEFAULT_NAME]
SHARD_OF = {path: shard_of(name, CFG.shards) for name, path in ROLE_FILES.items()}
SHARDS = sorted(set(SHARD_OF.values()))
# Traits have shards of their own, so that including some runs nothing of the roles again.
SHARD_OF |= {path: trait_shard(name, CFG.shards) for name, path in TRAIT_FILES.items()}
TRAIT_SHARDS = sorted(set(SHARD_OF.values()) - set(SHARDS))
N_CORES = workflow.global_resources["_cores"].value
GENERATION_ENV = (
    f"../envs/{'vllm' if CFG.generation.engine == 'vllm' else 'axiskit'}.yaml"
)
# What one job that runs the model asks for.
MODEL_MEM_MB, MODEL_GPUS = CFG.resources.mem_mb, CFG.resources.gpus
FIGURES = [
    "roles_on_axis.svg",
    "roles_on_axis.html",
    "axis_pc1_cosine.svg",
    "variance_explained.svg",
    "persona_space.svg",
    "persona_space.html",
]
if SCRIPTS or CFG.conversations.extra_transcripts:
    FIGURES += ["trajectories.svg", "trajectories.html"]
if TRAIT_FILES:
    FIGURES += ["traits_on_axis.svg", "traits_on_axis.html"]
ALL_RESULTS = [
    f"results/{MODEL}/axis.pt",
    f"results/{MODEL}/projections.parquet",
    f"results/{MODEL}/capping_config.pt",
    f"results/{MODEL}/summary.txt",
    *(f"results/{MODEL}/figures/{name}" for name in FIGURES),
]
AUDIT_RESULTS = [
    f"results/{MODEL}/audit/audit.txt",
    f"results/{MODEL}/audit/sheet.html",
]

# How much runs at once changes no result, so it is no param: the scripts read it from the config,
# as generation does the layers, to refuse wrong ones before the hours of work and not after.
config["generation"] = CFG.generation.model_dump()
config["activations"] = CFG.activations.model_dump()
config["model"] = CFG.model.model_dump()
config["judge"] = CFG.judge.model_dump()
# as generation looks at the disk, too: before the first run the model's size is not known here
config["n_rollouts"] = WORKLOAD.n_rollouts if CFG.resources.check_disk else None
config["audit_judges"] = {
    "repeat": CFG.judge.model_dump(),
    "second": CFG.second_judge.model_dump(),
}


def require_engine():
    """Refuse to start without the package that a job will need to generate."""
    from axiskit.vllm_engine import require_package

    rules = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if CFG.generation.engine == "vllm" and "generate_responses" in rules:
        if not workflow.deployment_settings.deployment_method:
            try:
                require_package()
            except AxiskitError as error:
                raise WorkflowError(f"{type(error).__name__}: {error}")


def require_judge_key():
    """Refuse to start without the key or package that a job will need to ask a judge."""
    from axiskit.asking import require_key, require_package

    rules = {job.rule.name for job in workflow.dag.needrun_jobs()}
    asking = [CFG.judge] if rules & {"ask_judge", "judge_sample"} else []
    asking += [CFG.second_judge] if "judge_sample" in rules else []
    try:
        for judge in asking:
            if judge.is_hosted:
                require_key(judge.base_url)
                if not workflow.deployment_settings.deployment_method:
                    require_package()
    except AxiskitError as error:
        raise WorkflowError(f"{type(error).__name__}: {error}")


def require_gpus():
    """Refuse fewer GPUs for all jobs than one needs: Snakemake would run it with those."""
    limits = workflow.global_resources
    if "gpu" in limits and limits["gpu"].value < MODEL_GPUS:
        raise WorkflowError(
            f"--resources gpu={limits['gpu'].value}: {MODEL_GPUS} needed by each job that runs the model "
            "(resources.gpus); raise the one or lower the other"
        )


def require_room():
    """Refuse to start where the disk has no room for what the jobs to run will write."""
    from axiskit.disk import REST, check_room, needed_disk
    from axiskit.model_size import read_model_size

    if not CFG.resources.check_disk:
        return
    jobs_at_once = N_CORES // model_threads(None) if N_CORES else 1
    size = read_model_size(MODEL_PATH, revision=CFG.model.revision)
    needed = needed_disk(CFG, WORKLOAD, size, jobs_at_once=jobs_at_once)
    rules = {job.rule.name for job in workflow.dag.needrun_jobs()} | {REST}
    try:
        check_room(
            f"results/{MODEL}",
            {stage: needed[stage] for stage in needed if stage in rules},
        )
    except AxiskitError as error:
        raise WorkflowError(f"{type(error).__name__}: {error}")


def print_summary():
    """Print the summary of a run that has done something."""
    path = f"results/{MODEL}/summary.txt"
    if os.path.exists(path):
        with open(path) as file:
            print(file.read(), end="", file=sys.stderr)
