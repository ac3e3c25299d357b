"""Before a run: what the workflow would do with some config files, read without Snakemake."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from axiskit.config import Config, read_config
from axiskit.disk import check_room, needed_disk
from axiskit.errors import ConfigError, DiskError, ModelError
from axiskit.estimate import Estimate, cpu_jobs_at_once, make_estimate
from axiskit.model_size import ModelSize, read_model_size
from axiskit.questions import load_questions
from axiskit.roles import Role, load_roles
from axiskit.rollouts import plan_rollouts
from axiskit.speed import Speed, profile_speed
from axiskit.traits import find_trait_files, load_trait
from axiskit.transcripts import find_scripts, load_script
from axiskit.workload import Lengths, Workload, plan_workload


@dataclass(frozen=True)
class Plan:
    """What a run would work on.

    Attributes:
        config: The files laid over config/config.yaml.
        results: results/{model}.
        model_path: Where the model is, or will be once it is fetched.
        size: None: no config.json is there yet.
    """

    config: Config
    results: Path
    model_path: str
    size: ModelSize | None
    roles: dict[str, Role]
    questions: list[str]
    scripts: list[list[str]]
    workload: Workload

    def jobs_at_once(self) -> tuple[int | None, int]:
        """Threads of a job (None with GPUs), and jobs at once: on a CPU as its cores allow."""
        if self.config.resources.gpus:
            return None, 1
        return cpu_jobs_at_once(len(self.workload.shards), os.cpu_count() or 1)


def find_workflow() -> Path:
    """The folder with the Snakefile: here, or that of the installed library's checkout.

    Raises:
        ConfigError: It is in neither place.
    """
    for folder in (Path(), Path(__file__).parents[2]):
        if (folder / "Snakefile").is_file() and (folder / "config" / "config.yaml").is_file():
            return folder
    raise ConfigError(
        "Snakefile and config/config.yaml: not found here, they are needed to say what a run does; "
        "go to the folder of the workflow"
    )


def read_plan(
    config_files: Sequence[Path],
    *,
    directory: Path,
    model: str | None = None,
    download: bool = True,
) -> Plan:
    """Read config files and all that they name.

    Args:
        config_files: Laid over config/config.yaml in this order.
        directory: Where the run starts and results/ lies (``snakemake --directory``).
        model: Folder or Hugging Face id whose size counts; None: the config's.
        download: Fetch config.json of a Hugging Face id.

    Raises:
        ConfigError, RoleError, QuestionError, TranscriptError: As the Snakefile would.
    """
    workflow = find_workflow()
    config = read_config([workflow / "config" / "config.yaml", *config_files])

    def found(path: str) -> Path:
        return next(
            (place for place in (directory / path, workflow / path) if place.exists()), Path(path)
        )

    results = directory / "results" / config.model.name
    if config.model.must_be_fetched:
        model_path = str(results / "model")
    else:
        local = directory / config.model.path
        model_path = str(local) if local.is_dir() else config.model.path
    roles = load_roles(
        found(config.roles.dir),
        config.roles.include,
        prompts_per_role=config.prompts_per_role,
        default_prompts=config.default_prompts,
    )
    trait_files = find_trait_files(found(config.traits.dir), config.traits.include)
    traits = [load_trait(path, n_pairs=config.prompts_per_role) for path in trait_files.values()]
    questions = load_questions(found(config.questions.file), config.questions.count)
    scripts = [
        load_script(path).turns[: config.conversations.max_turns]
        for path in find_scripts(
            found(config.conversations.dir), config.conversations.include
        ).values()
    ]
    return Plan(
        config=config,
        results=results,
        model_path=model or model_path,
        size=read_model_size(
            model or model_path,
            revision=None if model else config.model.revision,
            download=download,
        ),
        roles=roles,
        questions=questions,
        scripts=scripts,
        workload=plan_workload(config, roles, questions, scripts, traits),
    )


def estimate_plan(
    plan: Plan, *, probe: bool = False, hardware: str | None = None, jobs_at_once: int | None = None
) -> Estimate:
    """Estimate a plan, with times if a probe or a GPU's name allows it.

    Args:
        plan: What would run.
        probe: Run the model for up to two minutes, here and now.
        hardware: Name of a GPU in :data:`axiskit.speed.HARDWARE`.
        jobs_at_once: None: as :meth:`Plan.jobs_at_once` says.

    Raises:
        ConfigError: The GPU is not known, or vLLM is to be probed and is not installed.
        DeviceError: Fewer GPUs are visible than a job needs.
        ModelError: There is no model to probe, or it cannot be loaded.
    """
    threads, at_once = plan.jobs_at_once()
    at_once = jobs_at_once or at_once
    lengths, speed = Lengths(), None
    if probe:
        speed, lengths = probe_plan(plan, threads, at_once if threads else 1)
    elif hardware and plan.size:
        speed = profile_speed(
            hardware,
            plan.size,
            plan.config,
            prompt_tokens=lengths.tokens(plan.workload.prompt_bytes),
            response_tokens=plan.config.generation.max_new_tokens * lengths.response_share,
        )
    return make_estimate(
        plan.config,
        plan.workload,
        plan.size,
        lengths=lengths,
        speed=speed,
        jobs_at_once=at_once,
    )


def room_left(plan: Plan, estimate: Estimate) -> DiskError | None:
    """What :func:`axiskit.disk.check_room` says to a whole run; None: nothing."""
    needed = needed_disk(
        plan.config,
        plan.workload,
        plan.size,
        estimate.lengths,
        jobs_at_once=estimate.jobs_at_once,
    )
    try:
        check_room(plan.results, needed)
    except DiskError as error:
        return error
    return None


def probe_plan(plan: Plan, threads: int | None, jobs_at_once: int) -> tuple[Speed, Lengths]:
    """Run :func:`axiskit.probe.run_probe` on a plan, with GPUs leased as a job's are.

    Raises:
        ConfigError: vLLM is to generate, and is not installed.
        DeviceError: Fewer GPUs are visible than a job needs.
        ModelError: There is no model yet, or it cannot be loaded.
    """
    from axiskit.devices import lease_gpus
    from axiskit.probe import run_probe
    from axiskit.vllm_engine import require_package

    config = plan.config
    if config.generation.engine == "vllm":
        require_package()
    if plan.size is None and config.model.must_be_fetched:
        raise ModelError(
            f"{plan.model_path}: not there yet, the model is needed for a probe (--probe); fetch "
            f"it: snakemake --cores 1 results/{config.model.name}/model"
        )
    name = config.model.display_name or config.model.name
    default = next(role for role in plan.roles.values() if role.kind == "default")
    rollouts = plan_rollouts(
        plan.roles.values(),
        plan.questions,
        prompts_per_role=config.prompts_per_role,
        default_prompts=config.default_prompts,
        model_name=name,
        seed=config.generation.seed,
    )
    lease_gpus(config.resources.gpus)
    return run_probe(
        config,
        plan.model_path,
        rollouts,
        neutral_prompt=default.prompts(1, name)[0],
        n_scripts=len(plan.scripts),
        threads=threads,
        jobs_at_once=jobs_at_once,
    )
