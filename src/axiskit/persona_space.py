"""Persona space: principal components of the role vectors, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA

from axiskit.artifacts import read_table, stage_metadata, write_pt, write_table
from axiskit.axis import (
    axis_norm_per_layer,
    cosine_similarity_per_layer,
    layer_position,
    project_batch,
    read_axis,
)
from axiskit.layers import target_layer
from axiskit.vectors import load_role_vectors

N_COMPONENTS = 10
"""Components kept in persona_space.pt (fewer when there are fewer roles)."""


class MeanScaler:
    """Subtracts the mean over samples."""

    def __init__(self) -> None:
        self.mean: torch.Tensor | None = None

    def fit_transform(
        self, samples: Float[torch.Tensor, "sample hidden"]
    ) -> Float[torch.Tensor, "sample hidden"]:
        """Learn the mean of these samples and subtract it."""
        self.mean = samples.float().mean(dim=0)
        return self.transform(samples)

    def transform(
        self, samples: Float[torch.Tensor, "sample hidden"]
    ) -> Float[torch.Tensor, "sample hidden"]:
        """Subtract the learned mean. Fit first."""
        if self.mean is None:
            raise RuntimeError("scaler: not fitted; call fit_transform first")
        return samples.float() - self.mean


class L2MeanScaler(MeanScaler):
    """Subtracts the mean over samples, then scales each to length 1."""

    def transform(
        self, samples: Float[torch.Tensor, "sample hidden"]
    ) -> Float[torch.Tensor, "sample hidden"]:
        """Subtract the learned mean and divide by the length. Fit first."""
        return torch.nn.functional.normalize(super().transform(samples), dim=-1)


def compute_pca(
    activations: Float[torch.Tensor, "sample layer hidden"],
    layer: int,
    scaler: MeanScaler | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int, PCA, MeanScaler]:
    """Principal components of the samples at one layer.

    Args:
        activations: For example role vectors.
        layer: Position along the layer dimension.
        scaler: Applied first; None subtracts the mean.

    Returns:
        Samples in component coordinates [sample, component], share of variance of each component,
        number of components, the fitted PCA, the fitted scaler.
    """
    scaler = scaler or MeanScaler()
    samples = scaler.fit_transform(activations[:, layer])
    pca = PCA(svd_solver="full")
    transformed = pca.fit_transform(samples.double().numpy())
    return transformed, pca.explained_variance_ratio_, int(pca.n_components_), pca, scaler


def components_for(variance: npt.NDArray[np.float64], share: float) -> int:
    """How many components explain ``share`` of the variance.

    >>> components_for(np.array([0.5, 0.3, 0.2]), 0.7)
    2
    """
    return int(np.searchsorted(np.cumsum(variance), share - 1e-9) + 1)


def analyse_persona_space(
    *,
    role_vectors_path: str | Path,
    axis_path: str | Path,
    roles_path: str | Path,
    persona_space_path: str | Path,
    personas_path: str | Path,
    layers_path: str | Path,
    variance_path: str | Path,
    target_layer_setting: str | int,
) -> None:
    """Principal components of the role vectors at every layer, with the axis among them.

    Components are signed so that their cosine with the axis is positive. Writes persona_space.pt
    (components, mean and variance by layer), personas.parquet (roles and default at the target
    layer), layers.parquet (one row a layer) and variance.parquet (one row a layer and component).
    """
    content = load_role_vectors(role_vectors_path)
    axis, axis_metadata = read_axis(axis_path)
    vectors, default, layers = content["vectors"], content["default"], content["layers"]
    groups, _ = read_table(roles_path, ["role", "kind", "group"])
    group_of = {row["role"]: row for row in groups.to_pylist()}
    default_name = next(name for name, row in group_of.items() if row["kind"] == "default")
    metadata = stage_metadata(
        "analyse_persona_space",
        [content["metadata"], axis_metadata],
        target_layer=target_layer_setting,
    )
    target = target_layer(target_layer_setting, layers, metadata["model"]["n_layers"])
    metadata["layers"], metadata["target_layer"] = layers, target
    n_components = min(N_COMPONENTS, len(content["roles"]) - 1)
    components = torch.empty(len(layers), n_components, axis.shape[-1])
    ratios, means, variance_rows, layer_rows = [], [], [], []
    for position, layer in enumerate(layers):
        _, variance, _, pca, scaler = compute_pca(vectors, position)
        found = torch.from_numpy(pca.components_[:n_components]).float()
        signs = torch.where(found @ axis[position] < 0, -1.0, 1.0)
        components[position] = found * signs[:, None]
        ratios.append(torch.from_numpy(variance[:n_components]).float())
        means.append(scaler.mean)
        variance_rows += [
            {"layer": layer, "component": i + 1, "variance_ratio": float(value)}
            for i, value in enumerate(variance)
            if i < len(content["roles"]) - 1  # the last one is nothing but rounding
        ]
        layer_rows.append({"layer": layer, "n_components_70": components_for(variance, 0.7)})
    pc1 = cosine_similarity_per_layer(axis, components[:, 0])
    norms = axis_norm_per_layer(axis)
    stream = vectors.norm(dim=-1).mean(dim=0)
    for position, row in enumerate(layer_rows):
        row["cosine_axis_pc1"] = float(pc1[position])
        row["axis_norm"] = float(norms[position])
        row["mean_role_norm"] = float(stream[position])
    mean = torch.stack([m for m in means if m is not None])
    write_pt(
        persona_space_path,
        {
            "components": components,
            "mean": mean,
            "variance_ratio": torch.stack(ratios),
            "layers": layers,
            "metadata": metadata,
        },
    )
    at = layer_position(layers, target)
    everyone = torch.cat([vectors, default[None]])
    coordinates = (everyone[:, at] - mean[at]) @ components[at].T
    projections = project_batch(everyone, axis)[:, at]
    names = [*content["roles"], default_name]
    persona_rows = [
        {
            "role": name,
            "kind": group_of[name]["kind"],
            "group": group_of[name]["group"],
            "projection": float(projections[i]),
            **{f"pc{c + 1}": float(coordinates[i, c]) for c in range(n_components)},
        }
        for i, name in enumerate(names)
    ]
    write_table(personas_path, pa.Table.from_pylist(persona_rows), metadata)
    write_table(layers_path, pa.Table.from_pylist(layer_rows), metadata)
    write_table(variance_path, pa.Table.from_pylist(variance_rows), metadata)
