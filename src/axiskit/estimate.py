"""What a run will take: tokens, time, disk, memory and money, by arithmetic from the config.

Light on purpose (no torch, no pandas): the Snakefile asks for the disk before the first job. What
is assumed stands in :class:`Lengths`, in axiskit.speed and in the constants here; docs/estimate.md
holds the estimate against a run.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axiskit.config import CONDITIONS, Config
from axiskit.errors import DiskError
from axiskit.judge_prompts import judge_prompt
from axiskit.model_size import BYTES, ModelSize
from axiskit.roles import Role
from axiskit.rollouts import shard_of
from axiskit.speed import HARDWARE, Speed
from axiskit.traits import Pole, Trait, trait_shard

_GPU_BYTES = 0.9 * 2**30  # usable of what is sold as a GB: CUDA and fragments take their share
_OVERHEAD_BYTES = 1e9  # of a process with torch in it
_DISK_BYTES_PER_SECOND = 5e8  # at which later steps read activations

REST = "the rest"

PLACES = {
    "fetch_model": ("model",),
    "generate_responses": ("responses", "journal/generate_responses"),
    "extract_activations": ("activations", "journal/extract_activations"),
    "judge_responses": ("scores", "journal/judge_responses"),
    "ask_judge": ("scores", "journal/ask_judge"),
    "hold_conversation": ("conversations", "journal/hold_conversation"),
    "project_conversations": ("trajectories.parquet",),
    REST: (
        *("role_vectors.pt", "roles.parquet", "axis.pt", "projections.parquet", "persona_space.pt"),
        *("capping_config.pt", "capping.parquet", "personas.parquet", "layers.parquet"),
        *("variance.parquet", "summary.txt", "figures", "logs", "benchmarks"),
        *("trait_vectors.pt", "traits.parquet"),
    ),
}
"""What each stage leaves in results/{model}/; a stage is a rule, or all the small ones together."""

_REST_JOBS = 11
_N_COMPONENTS = 10  # as axiskit.persona_space keeps them


@dataclass(frozen=True)
class Workload:
    """What a config asks of any model: counts of rollouts, and lengths of texts in bytes of UTF-8.

    Attributes:
        rollouts: By kind of role.
        judged: Of these, those that a judge scores.
        shards: Rollouts of each shard.
        n_vectors: Roles, the default among them, and traits: each has a vector.
        prompt_bytes: Instruction and question of a rollout, mean.
        longest_prompt_bytes: The longest.
        question_bytes: A question, mean.
        judge_prompt_bytes: What a hosted judge is sent beside the response, mean.
        scripts: For each conversation the lengths of its user turns.
    """

    rollouts: Mapping[str, int]
    judged: int
    shards: tuple[int, ...]
    n_vectors: int
    prompt_bytes: float
    longest_prompt_bytes: int
    question_bytes: float
    judge_prompt_bytes: float
    scripts: tuple[tuple[int, ...], ...]

    @property
    def n_rollouts(self) -> int:
        """Rollouts of all kinds."""
        return sum(self.rollouts.values())


@dataclass(frozen=True)
class Lengths:
    """How bytes become tokens, and how long responses are; a probe measures it.

    Attributes:
        source: Where the numbers come from.
        bytes_per_token: Of a text.
        template_tokens: What the chat template adds to a prompt.
        response_share: Mean length of a response, in shares of ``max_new_tokens``.
        step_share: Decoding steps of a batch, likewise: its longest response decides.
    """

    source: str = "assumed: 4 bytes a token, responses as long as max_new_tokens allows"
    bytes_per_token: float = 4.0
    template_tokens: float = 15.0
    response_share: float = 1.0
    step_share: float = 1.0

    def tokens(self, n_bytes: float) -> float:
        """Tokens of a prompt with so many bytes in it."""
        return n_bytes / self.bytes_per_token + self.template_tokens


@dataclass(frozen=True)
class Stage:
    """What one stage takes; None: not known.

    Attributes:
        jobs: Jobs that it is split into.
        tokens_read: Tokens that models read, a hosted judge too.
        tokens_written: Tokens that they write.
        seconds: Of all its jobs, one after the other.
        gpus: GPUs of a job.
        disk: Bytes that stay.
        disk_while: Bytes more while its jobs run.
    """

    name: str
    jobs: int
    tokens_read: float | None = None
    tokens_written: float | None = None
    seconds: float | None = None
    gpus: int = 0
    disk: float | None = None
    disk_while: float = 0.0

    @property
    def gpu_hours(self) -> float | None:
        """Hours of its jobs times their GPUs."""
        return None if self.seconds is None else self.seconds * self.gpus / 3600


@dataclass(frozen=True)
class Memory:
    """What a job that runs the model takes at most, in bytes.

    Attributes:
        generating: Beside the weights: the cache of a full batch, and its logits.
        reading: Beside the weights: a batch of ``tokens_per_batch``, and logits for the judge.
    """

    weights: float
    generating: float
    reading: float

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.weights + max(self.generating, self.reading) + _OVERHEAD_BYTES

    def gpus_needed(self, memory_gb: float) -> int:
        """GPUs of this size that hold it."""
        return math.ceil(self.total / (memory_gb * _GPU_BYTES))


@dataclass(frozen=True)
class Estimate:
    """All that a run will take.

    Attributes:
        stages: In the order of the data.
        wall_s: From start to end with ``jobs_at_once``; None: no speed is known.
        judge_usd: What a hosted judge costs; None: no price is known.
        download: Bytes that the cache of Hugging Face still lacks; None: not known.
        gpu_sizes: Memory of GPUs that a job may be held against, GB.
    """

    workload: Workload
    lengths: Lengths
    size: ModelSize | None
    speed: Speed | None
    stages: tuple[Stage, ...]
    memory: Memory | None
    jobs_at_once: int
    wall_s: float | None
    judge_usd: float | None
    download: float | None

    gpu_sizes: tuple[int, ...] = (24, 40, 80, 141)

    @property
    def disk(self) -> float | None:
        """Bytes in results/ at the worst moment; None: a stage's are not known."""
        parts = [stage.disk for stage in self.stages]
        if None in parts:
            return None
        return sum(filter(None, parts)) + max(stage.disk_while for stage in self.stages)


def plan_workload(
    config: Config,
    roles: Mapping[str, Role],
    questions: Sequence[str],
    scripts: Iterable[Sequence[str]],
    traits: Iterable[Trait] = (),
) -> Workload:
    """Count what a config asks for.

    Args:
        config: The config.
        roles: The included roles, the default among them.
        questions: Those that are asked.
        scripts: User turns of each conversation, those that are held.
        traits: The included traits.
    """
    n_prompts = config.prompts_per_role
    prompts_of = {"role": n_prompts, "trait": n_prompts, "default": config.default_prompts}
    characters = [*roles.values(), *(pole for trait in traits for pole in trait.poles())]
    name = config.model.display_name or config.model.name
    rollouts: Counter[str] = Counter()
    shards: Counter[str] = Counter()
    instruction_bytes, longest, judge_bytes = 0, 0, []
    for role in characters:
        prompts = [len(text.encode()) for text in role.prompts(prompts_of[role.kind], name)]
        rollouts[role.kind] += len(prompts) * len(questions)
        shard = (
            trait_shard(role.trait, config.shards)
            if isinstance(role, Pole)
            else shard_of(role.name, config.shards)
        )
        shards[shard] += len(prompts) * len(questions)
        instruction_bytes += sum(prompts) * len(questions)
        longest = max(longest, *prompts)
        if config.judge.is_hosted and role.kind != "default":
            judge_bytes.append(len(judge_prompt(role, question="", response="").encode()))
    lengths = [len(question.encode()) for question in questions]
    question_bytes = sum(lengths) / len(lengths)
    return Workload(
        rollouts=dict(rollouts),
        judged=rollouts["role"] + rollouts["trait"],
        shards=tuple(shards[shard] for shard in sorted(shards)),
        n_vectors=len(roles) + rollouts["trait"] // (2 * n_prompts * len(questions)),
        prompt_bytes=instruction_bytes / rollouts.total() + question_bytes,
        longest_prompt_bytes=longest + max(lengths),
        question_bytes=question_bytes,
        judge_prompt_bytes=(
            question_bytes + sum(judge_bytes) / len(judge_bytes) if judge_bytes else 0.0
        ),
        scripts=tuple(tuple(len(turn.encode()) for turn in turns) for turns in scripts),
    )


def make_estimate(
    config: Config,
    workload: Workload,
    size: ModelSize | None,
    *,
    lengths: Lengths | None = None,
    speed: Speed | None = None,
    jobs_at_once: int = 1,
) -> Estimate:
    """Put all parts together.

    Args:
        config: The config.
        workload: What it asks for.
        size: The model's; None: not known, and so are disk and memory.
        lengths: Measured ones; None: assumed ones.
        speed: None: times are not known.
        jobs_at_once: Jobs that run the model side by side.
    """
    lengths = lengths or Lengths()
    disk = stage_disk(config, workload, size, lengths)
    tokens = stage_tokens(config, workload, lengths)
    activations = disk["extract_activations"]
    seconds = stage_seconds(
        config,
        workload,
        lengths,
        speed,
        bytes_read=None if activations is None else 2 * activations,  # for vectors, and projections
    )
    n_shards = len(workload.shards)
    jobs = {
        "fetch_model": 1,
        "hold_conversation": len(CONDITIONS),
        "project_conversations": 1,
        REST: _REST_JOBS,
    }
    hosted = {"ask_judge", "fetch_model", REST}
    stages = tuple(
        Stage(
            name,
            jobs.get(name, n_shards),
            tokens_read=tokens[name][0] if name in tokens else None,
            tokens_written=tokens[name][1] if name in tokens else None,
            seconds=seconds.get(name),
            gpus=0 if name in hosted else config.resources.gpus,
            disk=disk[name],
            disk_while=checkpoint_bytes(config, workload, size, jobs_at_once)
            if name == "extract_activations"
            else 0.0,
        )
        for name in disk
    )
    download = None
    if size is not None and not config.model.must_be_fetched:
        download = 0.0 if size.weights_on_disk else size.parameters * BYTES["bfloat16"]
    return Estimate(
        workload=workload,
        lengths=lengths,
        size=size,
        speed=speed,
        stages=stages,
        memory=job_memory(config, workload, size, lengths) if size else None,
        jobs_at_once=jobs_at_once,
        wall_s=_wall_seconds(stages, jobs_at_once) if speed else None,
        judge_usd=judge_usd(config, workload, lengths),
        download=download,
    )


def stage_tokens(
    config: Config, workload: Workload, lengths: Lengths
) -> dict[str, tuple[float, float]]:
    """Tokens that models read and write, by stage.

    A conversation is read anew at each turn, as nothing is kept between them.
    """
    prompt = lengths.tokens(workload.prompt_bytes)
    response = config.generation.max_new_tokens * lengths.response_share
    n = workload.n_rollouts
    tokens = {
        "generate_responses": (n * prompt, n * response),
        "extract_activations": (n * (prompt + response), 0.0),
    }
    if config.judge.is_hosted:
        from axiskit.asking import estimated_tokens

        n_bytes = workload.judge_prompt_bytes + response * lengths.bytes_per_token
        tokens["ask_judge"] = (
            float(workload.judged * estimated_tokens(" " * round(n_bytes))),
            float(workload.judged * config.judge.max_tokens),
        )
    else:
        neutral = lengths.tokens(workload.question_bytes)
        tokens["judge_responses"] = (workload.judged * (neutral + response), 0.0)
    answer = config.conversations.max_new_tokens * lengths.response_share
    read = written = final = 0.0
    for turns in workload.scripts:
        length = 0.0
        for turn in turns:
            length += lengths.tokens(turn)
            read += length
            length += answer
            written += answer
        final += length
    n_conditions = len(CONDITIONS)
    tokens["hold_conversation"] = (n_conditions * read, n_conditions * written)
    tokens["project_conversations"] = (n_conditions * final, 0.0)
    return tokens


def judge_usd(config: Config, workload: Workload, lengths: Lengths) -> float | None:
    """What a hosted judge costs at most, in USD: 0 by likelihood, None without a price."""
    if not config.judge.is_hosted:
        return 0.0
    from axiskit.asking import hosted_judge

    judge = hosted_judge(config.judge.model_dump())
    if judge.price is None:
        return None
    return judge.usd(*stage_tokens(config, workload, lengths)["ask_judge"])


def stage_seconds(
    config: Config,
    workload: Workload,
    lengths: Lengths,
    speed: Speed | None,
    bytes_read: float | None,
) -> dict[str, float]:
    """Seconds of all jobs of each stage, where they can be told.

    A stage's batches are decoded step by step, until the longest response of each has ended.

    Args:
        config: The config.
        workload: What it asks for.
        lengths: How long prompts and responses are.
        speed: None: no times are known.
        bytes_read: What the later steps read of the disk.
    """
    if speed is None:
        return {}
    tokens = stage_tokens(config, workload, lengths)
    batch = config.generation.batch_size
    n_batches = sum(math.ceil(n / batch) for n in workload.shards)
    starts = len(workload.shards) * speed.start_s
    steps = config.generation.max_new_tokens * lengths.step_share

    def reading(stage: str, each_s: float) -> float:
        return tokens[stage][0] * each_s

    seconds = {
        "generate_responses": starts
        + reading("generate_responses", speed.read_s)
        + steps * (n_batches * speed.step_s + workload.n_rollouts * speed.row_step_s),
        "extract_activations": starts + reading("extract_activations", speed.read_s),
    }
    if not config.judge.is_hosted:
        seconds["judge_responses"] = starts + reading("judge_responses", speed.judge_s)
    turns = [len(script) for script in workload.scripts]
    rounds = max(turns, default=0) * math.ceil(len(turns) / batch)
    answer_steps = config.conversations.max_new_tokens * lengths.step_share
    seconds["hold_conversation"] = (
        len(CONDITIONS) * speed.start_s
        + reading("hold_conversation", speed.read_s)
        + len(CONDITIONS) * answer_steps * (rounds * speed.step_s + sum(turns) * speed.row_step_s)
    )
    seconds["project_conversations"] = speed.start_s + reading(
        "project_conversations", speed.read_s
    )
    if bytes_read is not None:
        seconds[REST] = _REST_JOBS * speed.import_s + bytes_read / _DISK_BYTES_PER_SECOND
    return seconds


def stage_disk(
    config: Config, workload: Workload, size: ModelSize | None, lengths: Lengths
) -> dict[str, float | None]:
    """Bytes that each stage leaves in results/{model}/; None where the model's size decides.

    Overheads of rows, files and columns are those of the formats, seen on finished runs.
    """
    n, n_shards = workload.n_rollouts, len(workload.shards)
    text = n * config.generation.max_new_tokens * lengths.response_share * lengths.bytes_per_token
    tokens = stage_tokens(config, workload, lengths)
    written = tokens["hold_conversation"][1]
    spoken = written * lengths.bytes_per_token
    asked = len(CONDITIONS) * sum(map(sum, workload.scripts))
    n_talks = len(CONDITIONS) * len(workload.scripts)
    n_answers = len(CONDITIONS) * sum(map(len, workload.scripts))
    judging, row_bytes = ("ask_judge", 270) if config.judge.is_hosted else ("judge_responses", 101)
    disk: dict[str, float | None] = {"fetch_model": None} if config.model.must_be_fetched else {}
    disk |= {
        "generate_responses": n * 175 + 1.45 * text + 6000 * n_shards,
        "extract_activations": None,
        judging: workload.judged * row_bytes + 4500 * n_shards,
        "hold_conversation": 2 * spoken + asked + 250 * n_answers + 2500 * n_talks,
        "project_conversations": None,
        REST: None,
    }
    if size is None:
        return disk
    if config.model.must_be_fetched:  # weights, and a tokenizer of some 70 bytes a token
        disk["fetch_model"] = size.parameters * BYTES["bfloat16"] + 70 * size.vocab_size
    kept = kept_layers(config, size)
    per_layer = size.hidden_size * BYTES["float32"]
    windows = sum(config.capping.widths) * size.n_layers / config.capping.step
    activations = activation_bytes(n, kept, size.hidden_size)
    return disk | {
        "extract_activations": activations + 30 * n + 3000 * n_shards,
        "project_conversations": 8 * written + 500 * kept + 4 * kept * n_answers + 4500,
        REST: kept
        * per_layer
        * (workload.n_vectors + _N_COMPONENTS + 3)  # vectors, space, axis, caps
        + 90 * windows * len(config.capping.floor_quantiles)
        + n * (4 * kept + 12)  # projections
        + 600 * kept
        + 1.5e7,  # figures: three hold all of plotly
    }


def activation_bytes(n_rollouts: int, n_layers: int, hidden_size: int) -> int:
    """Bytes of the activations of so many rollouts, in bfloat16."""
    return n_rollouts * n_layers * hidden_size * BYTES["bfloat16"]


def kept_layers(config: Config, size: ModelSize) -> int:
    """Number of layers whose activations are kept."""
    layers = config.activations.layers
    return size.n_layers if isinstance(layers, str) else len(set(layers))


def checkpoint_bytes(
    config: Config, workload: Workload, size: ModelSize | None, jobs_at_once: int
) -> float:
    """Bytes of the checkpoints that lie beside the activations while shards are extracted."""
    if size is None:
        return 0.0
    largest = sorted(workload.shards, reverse=True)[:jobs_at_once]
    return activation_bytes(sum(largest), kept_layers(config, size), size.hidden_size)


def job_memory(config: Config, workload: Workload, size: ModelSize, lengths: Lengths) -> Memory:
    """What a job that runs the model takes at most, in GPU memory, or in main memory on a CPU."""
    dtype = config.model.dtype
    longest = lengths.tokens(workload.longest_prompt_bytes) + config.generation.max_new_tokens
    batch = min(config.generation.batch_size, max(workload.shards))
    tokens = config.activations.tokens_per_batch
    hidden = tokens * (4 * size.hidden_size + 3 * size.intermediate_size) * BYTES[dtype]
    logits = 0 if config.judge.is_hosted else tokens * size.vocab_size * BYTES[dtype]
    return Memory(
        weights=size.weight_bytes(dtype),
        generating=batch * (longest * size.kv_bytes(dtype) + size.vocab_size * 16),
        reading=hidden + tokens * size.hidden_size * BYTES["float32"] + logits,
    )


def cpu_jobs_at_once(n_shards: int, cores: int) -> tuple[int, int]:
    """Threads of a job, and jobs at once, as ``snakemake --cores`` gives them on a CPU.

    >>> cpu_jobs_at_once(3, 2), cpu_jobs_at_once(3, 16)
    ((1, 2), (5, 3))
    """
    threads = max(1, cores // n_shards)
    return threads, min(n_shards, cores // threads)


def gpu_warning(config: Config, memory: Memory, hardware: str) -> str | None:
    """What is wrong with ``resources.gpus`` for a named GPU; None: it fits."""
    gpus, size_gb = config.resources.gpus, HARDWARE[hardware.lower()].memory_gb
    needed = memory.gpus_needed(size_gb)
    if gpus >= needed:
        return None
    total = show_bytes(memory.total)
    return (
        f"resources.gpus: {gpus} of {size_gb:g} GB, {needed} needed for {total}; "
        "raise it, or lower generation.batch_size or activations.tokens_per_batch"
    )


def free_bytes(path: str | Path) -> int:
    """Free bytes where a path lies or will lie; links are followed."""
    there = Path(os.path.realpath(path))
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def size_on_disk(paths: Iterable[Path]) -> int:
    """Bytes of files, and of all files in folders; what is missing has none."""
    total = 0
    for path in paths:
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(file.stat().st_size for file in files if file.is_file())
    return total


def needed_disk(
    config: Config,
    workload: Workload,
    size: ModelSize | None,
    lengths: Lengths | None = None,
    *,
    jobs_at_once: int = 1,
) -> dict[str, float]:
    """Bytes that each stage takes in results/{model}/ at most, where it is known."""
    disk = stage_disk(config, workload, size, lengths or Lengths())
    needed = {stage: n_bytes for stage, n_bytes in disk.items() if n_bytes is not None}
    if "extract_activations" in needed:
        needed["extract_activations"] += checkpoint_bytes(config, workload, size, jobs_at_once)
    return needed


def check_room(results: str | Path, needed: Mapping[str, float]) -> None:
    """Refuse to go on where the disk has no room for what is still to be written.

    What lies in results already counts as written, or as replaced.

    Args:
        results: results/{model}.
        needed: Bytes in the end, by stage (:data:`PLACES`).

    Raises:
        DiskError: There is less room than needed; both are said.
    """
    folder = Path(results)
    missing = {
        stage: max(0.0, total - size_on_disk(folder / place for place in PLACES[stage]))
        for stage, total in needed.items()
    }
    free = free_bytes(folder)
    if sum(missing.values()) > free:
        largest = max(missing, key=missing.__getitem__)
        raise DiskError(
            f"{folder}: {show_bytes(free)} free, {show_bytes(sum(missing.values()))} needed "
            f"({show_bytes(missing[largest])} of it by {largest}); make room, put results/ on "
            "another disk, or ask for less (activations.layers, questions.count, "
            "prompts_per_role); resources.check_disk: false starts all the same"
        )


def show_bytes(n_bytes: float) -> str:
    """A number of bytes in words.

    >>> show_bytes(217e9), show_bytes(1500)
    ('217 GB', '1.5 kB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 999.5 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.3g} {unit}" if n_bytes < 1000 else f"{n_bytes:.0f} {unit}"


def show_seconds(seconds: float) -> str:
    """A time in words.

    >>> show_seconds(42.4), show_seconds(330), show_seconds(8000)
    ('42 s', '5.5 min', '2.2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _wall_seconds(stages: Sequence[Stage], jobs_at_once: int) -> float:
    """All stages; those of several jobs side by side."""
    return sum(
        (stage.seconds or 0.0)
        / (1 if stage.name in {"fetch_model", "project_conversations", REST} else jobs_at_once)
        for stage in stages
    )


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """All numbers, for machines."""
    return {
        **asdict(estimate),
        "disk": estimate.disk,
        "memory_total": estimate.memory.total if estimate.memory else None,
        "gpus_needed": {
            str(size): estimate.memory.gpus_needed(size) if estimate.memory else None
            for size in estimate.gpu_sizes
        },
    }
