"""What a run will take: tokens, time, disk, memory and money, by arithmetic from the config.

Light on purpose (no torch, no pandas): the Snakefile asks for the disk before the first job. What
is assumed stands in :class:`Lengths`, in axiskit.speed and in the constants here; docs/estimate.md
holds the estimate against a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from axiskit.config import CONDITIONS, Config
from axiskit.disk import REST, checkpoint_bytes, show_bytes, stage_disk
from axiskit.model_size import BYTES, ModelSize
from axiskit.speed import HARDWARE, Speed
from axiskit.workload import Lengths, Workload, stage_tokens

_GPU_BYTES = 0.9 * 2**30  # usable of what is sold as a GB: CUDA and fragments take their share
_OVERHEAD_BYTES = 1e9  # of a process with torch in it
_DISK_BYTES_PER_SECOND = 5e8  # at which later steps read activations

_REST_JOBS = 11


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

    With transformers a batch is decoded step by step, until its longest response has ended; vLLM
    goes on with the next prompt where one has ended.

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

    if config.generation.engine == "vllm":
        written = tokens["generate_responses"][1]
        generating = len(workload.shards) * speed.vllm_start_s + written * speed.vllm_token_s
    else:
        generating = (
            starts
            + reading("generate_responses", speed.read_s)
            + steps * (n_batches * speed.step_s + workload.n_rollouts * speed.row_step_s)
        )
    seconds = {
        "generate_responses": generating,
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


def job_memory(config: Config, workload: Workload, size: ModelSize, lengths: Lengths) -> Memory:
    """What a job that runs the model takes at most, in GPU memory, or in main memory on a CPU.

    vLLM is counted with the cache of one response: it takes what it is given
    (``generation.vllm.gpu_memory_utilization``), and decodes as many at once as fit in.
    """
    dtype = config.model.dtype
    longest = lengths.tokens(workload.longest_prompt_bytes) + config.generation.max_new_tokens
    batch = min(config.generation.batch_size, max(workload.shards))
    if config.generation.engine == "vllm":
        batch = 1
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
    lower = "activations.tokens_per_batch"
    if config.generation.engine == "transformers":
        lower = f"generation.batch_size or {lower}"
    return (
        f"resources.gpus: {gpus} of {size_gb:g} GB, {needed} needed for {total}; "
        f"raise it, or lower {lower}"
    )


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
