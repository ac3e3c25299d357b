"""The Assistant Axis, and projections on it.

    axis[layer] = default[layer] - mean over roles(vectors[role, layer])

It points to the Assistant: a higher projection is more Assistant-like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from axiskit.artifacts import read_pt, stage_metadata, write_pt
from axiskit.errors import ArtifactError, NonFiniteError
from axiskit.vectors import load_role_vectors


def compute_axis(
    vectors: Float[torch.Tensor, "role layer hidden"],
    default: Float[torch.Tensor, "layer hidden"],
) -> Float[torch.Tensor, "layer hidden"]:
    """The Assistant Axis: default vector minus the mean of the role vectors, at every layer.

    Each role counts once, however many responses its vector averages.

    Raises:
        NonFiniteError: A vector holds NaN or Inf.

    Source: Lu et al. 2026, arXiv 2601.10387, section 3.

    >>> compute_axis(torch.tensor([[[1.0, 0.0]], [[3.0, 2.0]]]), torch.tensor([[5.0, 1.0]]))
    tensor([[3., 0.]])
    """
    axis = (default.double() - vectors.double().mean(dim=0)).float()
    if not bool(axis.isfinite().all()):
        raise NonFiniteError("axis: NaN or Inf found in a role vector, finite numbers needed")
    return axis


def write_axis(*, role_vectors_path: str | Path, axis_path: str | Path) -> None:
    """Compute the axis from role_vectors.pt and write axis.pt."""
    content = load_role_vectors(role_vectors_path)
    metadata = stage_metadata("compute_axis", [content["metadata"]])
    metadata["layers"] = content["layers"]
    metadata["n_roles"] = len(content["roles"])
    save_axis(axis_path, compute_axis(content["vectors"], content["default"]), metadata)


def save_axis(
    path: str | Path,
    axis: Float[torch.Tensor, "layer hidden"],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write axis.pt: ``{"axis": [layer, hidden] float32, "metadata": {...}}``.

    Raises:
        WriteError: The disk is full or not writable.
    """
    write_pt(path, {"axis": axis.float(), "metadata": dict(metadata or {})})


def load_axis(path: str | Path) -> Float[torch.Tensor, "layer hidden"]:
    """Read an axis: ours, or a bare tensor as in the published data set.

    Raises:
        ArtifactError: The file holds no tensor [layer, hidden].
    """
    return read_axis(path)[0]


def read_axis(path: str | Path) -> tuple[Float[torch.Tensor, "layer hidden"], dict[str, Any]]:
    """Read an axis with its metadata (empty for a bare tensor).

    Raises:
        ArtifactError: The file holds no tensor [layer, hidden].
    """
    content = read_pt(path)
    axis = content.get("axis") if isinstance(content, dict) else content
    if not isinstance(axis, torch.Tensor) or axis.ndim != 2:
        found = f"shape {list(axis.shape)}" if isinstance(axis, torch.Tensor) else type(axis)
        raise ArtifactError(
            f"{path}: {found}, an axis [layer, hidden] needed; is it the right file?"
        )
    return axis.float(), content.get("metadata", {}) if isinstance(content, dict) else {}


def project(
    activations: Float[torch.Tensor, "*batch layer hidden"],
    axis: Float[torch.Tensor, "layer hidden"],
    layer: int,
) -> Float[torch.Tensor, "*batch"]:
    """Projection on the unit axis at one layer: ``<h, axis / ||axis||>``, in the units of h.

    Args:
        activations: Residual stream at the same layers as the axis.
        axis: As :func:`compute_axis` gives it.
        layer: Position along the layer dimension.

    Raises:
        ArtifactError: Hidden sizes or layer counts differ; both are said.
    """
    return project_batch(activations, axis)[..., layer]


def project_batch(
    activations: Float[torch.Tensor, "*batch layer hidden"],
    axis: Float[torch.Tensor, "layer hidden"],
) -> Float[torch.Tensor, "*batch layer"]:
    """Projections on the unit axis at every layer, in the units of the activations.

    Raises:
        ArtifactError: Hidden sizes or layer counts differ; both are said.
    """
    if activations.shape[-2:] != axis.shape:
        raise ArtifactError(
            f"activations are [layer, hidden] {list(activations.shape[-2:])}, the axis "
            f"{list(axis.shape)}; use an axis of the same model and layers"
        )
    unit = torch.nn.functional.normalize(axis.float(), dim=-1)
    projections: torch.Tensor = torch.einsum("...lh,lh->...l", activations.float(), unit)
    return projections


def cosine_similarity_per_layer(
    first: Float[torch.Tensor, "layer hidden"], second: Float[torch.Tensor, "layer hidden"]
) -> Float[torch.Tensor, " layer"]:
    """Cosine of two directions at every layer.

    Raises:
        ArtifactError: Their shapes differ; both are said.
    """
    if first.shape != second.shape:
        raise ArtifactError(
            f"[layer, hidden] is {list(first.shape)} and {list(second.shape)}; use directions of "
            "the same model and layers"
        )
    return torch.cosine_similarity(first.double(), second.double(), dim=-1).float()


def axis_norm_per_layer(
    axis: Float[torch.Tensor, "layer hidden"],
) -> Float[torch.Tensor, " layer"]:
    """Length of the axis at every layer, in the units of the activations."""
    norms: torch.Tensor = axis.float().norm(dim=-1)
    return norms


def layer_position(layers: Sequence[int], layer: int) -> int:
    """Where a model's layer stands along the layer dimension of a tensor that keeps ``layers``.

    Raises:
        ArtifactError: It is not among them.
    """
    if layer not in layers:
        raise ArtifactError(f"layer {layer}: not kept; the file has {list(layers)}")
    return list(layers).index(layer)
