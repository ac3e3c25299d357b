"""What a file of a run, or of the published data set, is and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axiskit.artifacts import read_pt, read_table
from axiskit.errors import ArtifactError
from axiskit.transcripts import load_transcript

if TYPE_CHECKING:
    import torch

# columns that tell a table from the others
_TABLES = {
    "responses": {"rollout_id", "response", "seed"},
    "scores": {"rollout_id", "score", "judge"},
    "roles": {"role", "n_rollouts", "used"},
    "projections": {"rollout_id", "kind", "layer_0"},
    "capping floors": {"layer", "floor_quantile", "floor"},
    "trajectories of conversations": {"conversation", "turn", "token_projections"},
    "roles in persona space": {"role", "pc1"},
    "layers of persona space": {"layer", "cosine_axis_pc1"},
    "traits along the axis": {"trait", "cosine", "norm"},
    "variance by component": {"component", "variance_ratio"},
}


@dataclass(frozen=True)
class Description:
    """What a file is.

    Attributes:
        kind: In words, e.g. ``Assistant Axis``.
        facts: Short facts of this kind of file: shapes, counts, names.
        metadata: Its provenance as it stands in the file; empty where it has none.
    """

    kind: str
    facts: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


def describe(path: str | Path) -> Description:
    """Say what a .pt, .parquet or .json file is, by what is in it and not by its name.

    No code in a file is run.

    Raises:
        ArtifactError: It is missing, cannot be read, holds code, or is of no known kind.
        TranscriptError: It is JSON, but no conversation.
    """
    path = Path(path)
    readers = {".pt": _tensors, ".parquet": _table, ".json": _conversation}
    if path.is_dir():
        raise ArtifactError(f"{path}: a folder, a file in it needed")
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    if path.suffix not in readers:
        raise ArtifactError(
            f"{path}: ends in '{path.suffix}', {', '.join(readers)} can be described"
        )
    return readers[path.suffix](path)


def _tensors(path: Path) -> Description:
    content = read_pt(path)
    if not isinstance(content, dict):
        content = {"": content}
    metadata = _checked(path, content.get("metadata"))
    for keys, kind, facts in (
        (("vectors", "experiments"), "capping config", _capping_facts),
        (("roles", "vectors", "default"), "role vectors", _role_vectors_facts),
        (("traits", "vectors", "counts"), "trait vectors", _trait_vectors_facts),
        (("rollout_id", "activations"), "response activations", _activations_facts),
        (("components", "variance_ratio"), "persona space", _persona_space_facts),
        (("axis",), "Assistant Axis", _axis_facts),
        (("",), "bare tensor", _bare_facts),
    ):
        if all(key in content for key in keys):
            try:
                return Description(kind, facts(content), metadata)
            except (AttributeError, IndexError, KeyError, TypeError):
                raise ArtifactError(
                    f"{path}: looks like a file of the kind '{kind}', but its parts do not fit "
                    "one; is it damaged?"
                ) from None
    names = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise ArtifactError(f"{path}: holds {names}: no kind of file that axiskit knows")


def _axis_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    axis = content["axis"]
    layers = (content.get("metadata") or {}).get("layers", range(axis.shape[0]))
    facts = {"shape": _shape(axis, "layer", "hidden"), "layers": layer_ranges(layers)}
    if "n_roles" in (content.get("metadata") or {}):
        facts["roles"] = content["metadata"]["n_roles"]
    return facts | {"length": _span(axis.float().norm(dim=-1))}


def _bare_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    tensor = content[""]
    if tensor.ndim != 2:
        return {"shape": _shape(tensor)}
    return {
        "shape": _shape(tensor, "layer", "hidden"),
        "length": _span(tensor.float().norm(dim=-1)),
        "note": "an axis or a vector as published: which, and of which model, it does not say",
    }


def _capping_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    vectors, experiments = content["vectors"], content["experiments"]
    hidden = sorted({len(vector["vector"]) for vector in vectors.values()})
    return {
        "vectors": f"{len(vectors)}, hidden size {', '.join(map(str, hidden))}",
        "layers": layer_ranges(sorted({int(vector["layer"]) for vector in vectors.values()})),
        "experiments": [str(experiment["id"]) for experiment in experiments],
    }


def _role_vectors_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "shape": _shape(content["vectors"], "role", "layer", "hidden"),
        "layers": layer_ranges(content["layers"]),
        "roles": list(content["roles"]),
    }


def _trait_vectors_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "shape": _shape(content["vectors"], "trait", "layer", "hidden"),
        "layers": layer_ranges(content["layers"]),
        "traits": list(content["traits"]),
    }


def _activations_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "shape": _shape(content["activations"], "rollout", "layer", "hidden"),
        "layers": layer_ranges(content["layers"]),
        "tokens averaged": sum(content["n_tokens"]),
    }


def _persona_space_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "shape": _shape(content["components"], "layer", "component", "hidden"),
        "layers": layer_ranges(content["layers"]),
    }


def _table(path: Path) -> Description:
    table, metadata = read_table(path)
    columns = set(table.column_names)
    kind = next((kind for kind, needed in _TABLES.items() if needed <= columns), "unknown table")
    if kind == "unknown table" and {"rollout_id", "kind"} <= columns:
        kind = "projections"  # of a run that does not keep layer 0
    facts: dict[str, Any] = {"rows": table.num_rows}
    if "layers" in metadata:
        facts["layers"] = layer_ranges(metadata["layers"])
    if "target_layer" in metadata:
        facts["target layer"] = metadata["target_layer"]
    return Description(f"table of {kind}", facts | {"columns": table.column_names}, metadata)


def _conversation(path: Path) -> Description:
    transcript = load_transcript(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content = content if isinstance(content, dict) else {}
    answers = [m["content"] for m in transcript.messages if m["role"] == "assistant"]
    facts: dict[str, Any] = {"answered by": transcript.model or "not said"}
    facts |= {key: content[key] for key in ("name", "domain", "condition") if key in content}
    facts["turns"] = len(answers)
    facts["system prompt"] = "yes" if transcript.messages[0]["role"] == "system" else "no"
    for key in ("intervention", "stats"):
        if content.get(key):
            facts[key] = content[key]
    return Description("conversation", facts, _checked(path, content.get("metadata")))


def _checked(path: Path, metadata: Any) -> dict[str, Any]:
    if metadata is not None and not isinstance(metadata, dict):
        raise ArtifactError(f"{path}: metadata: found {type(metadata).__name__}, a mapping needed")
    return metadata or {}


def layer_ranges(layers: Any) -> str:
    """Layers in short.

    >>> layer_ranges([0, 1, 2, 5, 8, 9])
    '0 to 2, 5, 8 to 9'
    """
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in parts)


def _shape(tensor: torch.Tensor, *names: str) -> str:
    sizes = " x ".join(map(str, tensor.shape)) or "one number"
    labels = f" [{', '.join(names)}]" if len(names) == tensor.ndim else ""
    return f"{sizes}{labels}, {str(tensor.dtype).removeprefix('torch.')}"


def _span(values: torch.Tensor) -> str:
    return f"{float(values.min()):.3g} to {float(values.max()):.3g} over the layers"
