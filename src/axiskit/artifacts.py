"""Reading and writing the files of results/: atomic, with provenance, refused when they do not fit.

Every file carries one metadata mapping: .pt files under the key ``metadata``, Parquet files as JSON
in the schema metadata under ``axiskit``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from axiskit import __version__
from axiskit.errors import ArtifactError, WriteError
from axiskit.recipes import RECIPE
from axiskit.rollouts import digest

if TYPE_CHECKING:
    import torch

Metadata = dict[str, Any]

LAYER_INDEXING = "residual stream after decoder block i (0-based)"
_PARQUET_KEY = b"axiskit"


def stage_metadata(stage: str, inputs: Iterable[Mapping[str, Any]], **settings: Any) -> Metadata:
    """Provenance of a stage's output: what its inputs carry, plus this stage's recipe and settings.

    Raises:
        ArtifactError: The inputs come from different models or different settings.
    """
    merged: Metadata = {"stages": {}}
    for metadata in inputs:
        check_same_model(merged, metadata)
        if "model" in metadata:
            merged["model"] = metadata["model"]
        for name, used in metadata["stages"].items():
            if merged["stages"].setdefault(name, used) != used:
                raise ArtifactError(
                    f"{stage}: one input was made by {name} with {merged['stages'][name]}, another "
                    f"with {used}; delete the older and run again"
                )
    merged["stages"][stage] = {"recipe": RECIPE[stage], **settings}
    merged["layer_indexing"] = LAYER_INDEXING
    merged["config_fingerprint"] = digest(merged.get("model"), merged["stages"])
    merged["versions"] = {"axiskit": __version__} | {
        name: version(name) for name in ("torch", "transformers")
    }
    return merged


def check_same_model(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse to mix files of two models.

    Raises:
        ArtifactError: Both name their model and the two differ; the message says in what.
    """
    if "model" not in first or "model" not in second:
        return
    for key, value in first["model"].items():
        if second["model"].get(key) != value:
            raise ArtifactError(
                f"files of two models: {key} is {value!r} in one and "
                f"{second['model'].get(key)!r} in the other; use files of one run"
            )


def write_table(path: str | Path, table: pa.Table, metadata: Metadata) -> None:
    """Write a Parquet file, atomically, with its provenance in the schema.

    Raises:
        WriteError: The disk is full or not writable; nothing half-written stays.
    """
    schema = {_PARQUET_KEY: json.dumps(metadata)}
    table = table.replace_schema_metadata(schema)
    _write(path, lambda file: pq.write_table(table, file, compression="zstd"))


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> tuple[pa.Table, Metadata]:
    """Read a Parquet file that axiskit wrote, and its provenance.

    Raises:
        ArtifactError: The file is missing, truncated or not one of axiskit's.
    """
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path}: cannot be read as Parquet ({_first_line(error)}); delete it and run again"
        ) from None
    try:
        return table, json.loads((table.schema.metadata or {})[_PARQUET_KEY])
    except KeyError:
        raise ArtifactError(
            f"{path}: no axiskit metadata found; was it written by a run?"
        ) from None


def write_pt(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write tensors, lists and numbers as a .pt file, atomically.

    Raises:
        WriteError: The disk is full or not writable; nothing half-written stays.
    """
    import torch

    _write(path, lambda file: torch.save(dict(content), file))


def read_pt(path: str | Path, keys: Sequence[str] = ()) -> Any:
    """Read a .pt file without running code in it (``weights_only``), memory-mapped.

    Raises:
        ArtifactError: It is missing, truncated, holds code, or lacks one of ``keys``.
    """
    import pickle
    import zipfile

    import torch

    try:
        # files that torch wrote before version 1.6 are no zip archives, and cannot be mapped
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError:
        raise ArtifactError(
            f"{path}: holds more than tensors, lists and numbers; refused, since it could run code"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(
            f"{path}: cannot be read as a .pt file ({_first_line(error)}); delete it and run again"
        ) from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ArtifactError(f"{path}: {', '.join(missing)} missing; is it the right file?")
    return content


def load_activations(path: str | Path) -> dict[str, Any]:
    """Read activations/{shard}.pt.

    Returns:
        ``rollout_id`` (list), ``activations`` [rollout, layer, hidden] bfloat16, ``layers`` (the
        model's layer of each position), ``n_tokens`` (list), ``metadata``.

    Raises:
        ArtifactError: It is not such a file, or its parts do not fit together.
    """
    content: dict[str, Any] = read_pt(
        path, ["rollout_id", "activations", "layers", "n_tokens", "metadata"]
    )
    check_shape(path, content["activations"], content["layers"], content["metadata"])
    return content


def check_shape(
    path: str | Path, tensor: torch.Tensor, layers: Sequence[int], metadata: Metadata
) -> None:
    """Refuse a tensor [..., layer, hidden] that is not of the model that its metadata names.

    Raises:
        ArtifactError: Layer count or hidden size differ; both numbers are said.
    """
    needed = (len(layers), metadata["model"]["hidden_size"])
    if tuple(tensor.shape[-2:]) != needed:
        raise ArtifactError(
            f"{path}: [layer, hidden] is {list(tensor.shape[-2:])}, {list(needed)} needed for "
            f"{metadata['model']['name']}; the file was changed or belongs to another model"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, atomically.

    Raises:
        WriteError: The disk is full or not writable; nothing half-written stays.
    """
    _write(path, lambda file: Path(file).write_text(text, encoding="utf-8"))


def _write(path: str | Path, save: Callable[[str], Any]) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # the next try overwrites what a kill leaves
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(str(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError, pa.ArrowException) as error:  # torch hides the OSError
        raise WriteError(
            f"{path}: cannot be written: {_first_line(error)}; make room and run the same command "
            "again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
