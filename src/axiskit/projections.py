"""Projections of all rollouts on the axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from axiskit.artifacts import load_activations, read_table, stage_metadata, write_table
from axiskit.axis import project_batch, read_axis

_ROWS_AT_ONCE = 64


def project_responses(
    *,
    responses_paths: Sequence[str | Path],
    activations_paths: Sequence[str | Path],
    axis_path: str | Path,
    projections_path: str | Path,
) -> None:
    """Project every response activation at every layer and write projections.parquet.

    One row a rollout: rollout_id, role, kind, and a float32 column ``layer_<i>`` for each layer. No
    score filter: what is monitored later is not filtered either.

    Raises:
        ArtifactError: Axis and activations are of different models or layers.
    """
    axis, axis_metadata = read_axis(axis_path)
    kinds: dict[str, str] = {}
    for path in responses_paths:
        table, _ = read_table(path, ["rollout_id", "kind"])
        kinds.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    tables, metadatas = [], [axis_metadata]
    for path in activations_paths:
        content = load_activations(path)
        metadatas.append(content["metadata"])
        parts = content["activations"].split(_ROWS_AT_ONCE)  # a shard can be larger than the memory
        projections = torch.cat([project_batch(part, axis) for part in parts])
        ids = content["rollout_id"]
        columns: dict[str, Any] = {
            "rollout_id": pa.array(ids, pa.string()),
            "role": pa.array([i.split("/")[0] for i in ids], pa.string()),
            "kind": pa.array([kinds[i] for i in ids], pa.string()),
        }
        for position, layer in enumerate(content["layers"]):
            columns[f"layer_{layer}"] = pa.array(projections[:, position].numpy())
        tables.append(pa.table(columns))
    metadata = stage_metadata("project_responses", metadatas)
    metadata["layers"] = axis_metadata["layers"]
    write_table(projections_path, pa.concat_tables(tables).sort_by("rollout_id"), metadata)
