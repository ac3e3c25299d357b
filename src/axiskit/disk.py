"""What a run writes to the disk, by arithmetic; and whether there is room for it.

Light on purpose (no torch, no pandas): the Snakefile asks before the first job. docs/estimate.md
holds the arithmetic against a run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from axiskit.config import CONDITIONS, Config
from axiskit.errors import DiskError
from axiskit.model_size import BYTES, ModelSize
from axiskit.workload import Lengths, Workload, stage_tokens

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

_N_COMPONENTS = 10  # as axiskit.persona_space keeps them


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
