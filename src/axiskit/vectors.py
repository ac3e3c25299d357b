"""Role vectors: the mean response activation of each role, and of the default."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from axiskit.artifacts import (
    check_shape,
    load_activations,
    read_pt,
    read_table,
    stage_metadata,
    write_pt,
    write_table,
)
from axiskit.errors import ArtifactError, VectorError
from axiskit.roles import load_role

_ROWS_AT_ONCE = 64

ROLES = pa.schema(
    [
        ("role", pa.string()),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("n_rollouts", pa.int32()),
        *((f"n_score_{score}", pa.int32()) for score in range(4)),
        ("n_unscored", pa.int32()),
        ("n_used", pa.int32()),
        ("used", pa.bool_()),
        ("reason", pa.string()),
    ]
)
"""Columns of roles.parquet: one row for every role, also those left out, with the reason."""


def compute_role_vectors(
    *,
    role_paths: Sequence[str | Path],
    responses_paths: Sequence[str | Path],
    scores_paths: Sequence[str | Path],
    activations_paths: Sequence[str | Path],
    role_vectors_path: str | Path,
    roles_path: str | Path,
    min_score: int,
    min_responses: int,
    min_roles: int,
) -> None:
    """Average activations by role over responses scored ``min_score`` up; the default over all.

    Shards are read one after the other, never all at once.

    Raises:
        VectorError: Fewer than ``min_roles`` roles have ``min_responses`` such responses, or the
            default has none.
    """
    roles = {role.name: role for role in sorted(map(load_role, role_paths), key=lambda r: r.name)}
    default = next(role.name for role in roles.values() if role.kind == "default")
    metadatas = []
    n_rollouts: Counter[str] = Counter()
    for path in responses_paths:
        table, _ = read_table(path, ["role"])
        n_rollouts.update(table.column("role").to_pylist())
    scores: dict[str, int | None] = {}
    counts: dict[str, Counter[int | None]] = defaultdict(Counter)
    for path in scores_paths:
        table, metadata = read_table(path, ["rollout_id", "role", "score"])
        metadatas.append(metadata)
        for row in table.to_pylist():
            scores[row["rollout_id"]] = row["score"]
            counts[row["role"]][row["score"]] += 1

    def is_used(rollout_id: str, character: str) -> bool:
        score = scores.get(rollout_id)
        return character == default or (score is not None and score >= min_score)

    means = mean_activations_by_character(activations_paths, is_used)
    n_used = means.counts
    metadatas += means.metadatas
    reasons = {
        name: (
            f"{n_used[name]} responses scored {min_score} or more, {min_responses} needed "
            "(vectors.min_responses)"
        )
        for name in roles
        if name != default and n_used[name] < min_responses
    }
    kept = [name for name in roles if name != default and name not in reasons]
    if not n_used[default]:
        raise VectorError(
            f"{default}: no response of the default has tokens; nothing to compare to"
        )
    metadata = stage_metadata(
        "compute_role_vectors", metadatas, min_score=min_score, min_responses=min_responses
    )
    if len(kept) < min_roles:
        listed = "; ".join(f"{name}: {n_used[name]}" for name in reasons)
        raise VectorError(
            f"{len(kept)} roles have {min_responses} responses scored {min_score} or more, "
            f"{min_roles} needed (vectors.min_roles); too few in: {listed}; lower "
            "vectors.min_responses or vectors.min_score, or raise questions.count"
        )
    rows = [
        {
            "role": name,
            "kind": role.kind,
            "group": role.group,
            "n_rollouts": n_rollouts[name],
            **{f"n_score_{score}": counts[name][score] for score in range(4)},
            "n_unscored": counts[name][None],
            "n_used": n_used[name],
            "used": name not in reasons,
            "reason": reasons.get(name),
        }
        for name, role in roles.items()
    ]
    write_table(roles_path, pa.Table.from_pylist(rows, schema=ROLES), metadata)
    write_pt(
        role_vectors_path,
        {
            "roles": kept,
            "vectors": torch.stack([means.vectors[name] for name in kept]),
            "default": means.vectors[default],
            "counts": {name: n_used[name] for name in [*kept, default]},
            "layers": means.layers,
            "metadata": metadata,
        },
    )


@dataclass(frozen=True)
class Means:
    """Mean activations by character (a role, the default, a trait's pole).

    Attributes:
        vectors: Character to mean [layer, hidden] float32, summed in float64.
        counts: Character to number of responses averaged; 0 where there are none.
        layers: The model's layer at each position.
        metadatas: Provenance of each file.
    """

    vectors: dict[str, torch.Tensor]
    counts: Counter[str]
    layers: list[int]
    metadatas: list[dict[str, Any]]


def mean_activations_by_character(
    paths: Sequence[str | Path], is_used: Callable[[str, str], bool]
) -> Means:
    """Average activations over the rollouts that count, by character.

    Shards are read one after the other, never all at once.

    Args:
        paths: Files activations/{shard}.pt.
        is_used: Rollout id and character to whether the rollout counts.

    Raises:
        ArtifactError: The shards keep different layers.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: Counter[str] = Counter()
    layers: list[int] = []
    metadatas = []
    for path in paths:
        content = load_activations(path)
        metadatas.append(content["metadata"])
        if layers and layers != content["layers"]:
            raise ArtifactError(
                f"{path}: layers {content['layers']}, {layers} needed as in the other shards"
            )
        layers = content["layers"]
        indices: dict[str, list[int]] = defaultdict(list)
        for i, rollout_id in enumerate(content["rollout_id"]):
            character = rollout_id.split("/")[0]
            if is_used(rollout_id, character):
                indices[character].append(i)
        for character, used in indices.items():
            for i in range(0, len(used), _ROWS_AT_ONCE):  # a shard can be larger than the memory
                rows_used = content["activations"][used[i : i + _ROWS_AT_ONCE]]
                total = rows_used.double().sum(dim=0)
                sums[character] = sums[character] + total if character in sums else total
            counts[character] += len(used)
    vectors = {name: (total / counts[name]).float() for name, total in sums.items()}
    return Means(vectors, counts, layers, metadatas)


def load_role_vectors(path: str | Path) -> dict[str, Any]:
    """Read role_vectors.pt.

    Returns:
        ``roles`` (names), ``vectors`` [role, layer, hidden] float32, ``default`` [layer, hidden],
        ``counts`` (responses averaged), ``layers``, ``metadata``.

    Raises:
        ArtifactError: It is not such a file, or its parts do not fit together.
    """
    content: dict[str, Any] = read_pt(
        path, ["roles", "vectors", "default", "counts", "layers", "metadata"]
    )
    check_shape(path, content["vectors"], content["layers"], content["metadata"])
    check_shape(path, content["default"], content["layers"], content["metadata"])
    return content
