"""Activation capping: floors along the axis, from projections to a config that caps a model.

Inside axiskit a cap is a **floor along the axis**, at a quantile of the projections of all
rollouts. The published files store the same thing with the opposite sign: vectors that point away
from the Assistant, ``cap`` a ceiling along them, and in ids the quantile along that direction, so
that ``p0.25`` is the 0.75 quantile along the axis. The signs flip here, in writer and reader, and
nowhere else. Source: Lu et al. 2026, section on activation capping, and the published files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import nn

from axiskit.artifacts import read_pt, read_table, stage_metadata, write_pt, write_table
from axiskit.axis import layer_position, read_axis
from axiskit.config import experiment_id
from axiskit.errors import ArtifactError, InterventionError
from axiskit.layers import decoder_blocks
from axiskit.steering import ActivationSteering

CAPPING = pa.schema(
    [
        ("layer", pa.int32()),
        ("floor_quantile", pa.float64()),
        ("floor", pa.float64()),
        ("n_rollouts", pa.int64()),
        ("default_below", pa.float64()),
        ("roles_below", pa.float64()),
    ]
)
"""Columns of capping.parquet; the last two are the shares of rollouts that lie under the floor."""


def calibrate_capping(
    *,
    projections_path: str | Path,
    axis_path: str | Path,
    capping_config_path: str | Path,
    capping_path: str | Path,
    widths: Sequence[int],
    step: int,
    floor_quantiles: Sequence[float],
) -> None:
    """Turn the projections of all rollouts into floors; write capping_config.pt, capping.parquet.

    At every layer the floor is a quantile of the projections of all rollouts, roles and default, no
    score filter. Every window of layers of the given widths, at every step, is an experiment at
    every quantile.

    Raises:
        ArtifactError: Axis and projections do not fit, or no window fits into the model.
    """
    axis, axis_metadata = read_axis(axis_path)
    table, projections_metadata = read_table(projections_path)
    rows = table.to_pandas()
    layers = list(axis_metadata["layers"])
    is_default = (rows["kind"] == "default").to_numpy()
    floors: dict[tuple[int, float], float] = {}
    records, vectors = [], {}
    for position, layer in enumerate(layers):
        values = rows[f"layer_{layer}"].to_numpy()
        default, roles = values[is_default], values[~is_default]
        vectors[_vector_name(layer)] = {
            "vector": -axis[position],
            "layer": layer,
            # along the vector as stored; with the wrong sign a cap would hold back the Assistant
            "default_projection": -float(default.mean()),
            "role_projection": -float(roles.mean()),
        }
        for quantile in floor_quantiles:
            floor = float(rows[f"layer_{layer}"].quantile(quantile))
            floors[layer, quantile] = floor
            records.append(
                {
                    "layer": layer,
                    "floor_quantile": quantile,
                    "floor": floor,
                    "n_rollouts": len(values),
                    "default_below": float((default < floor).mean()),
                    "roles_below": float((roles < floor).mean()),
                }
            )
    experiments = [
        {
            "id": experiment_id(window.start, window.stop, quantile),
            "interventions": [
                {"vector": _vector_name(layer), "cap": -floors[layer, quantile]} for layer in window
            ],
        }
        for window in capping_windows(layers, widths, step)
        for quantile in floor_quantiles
    ]
    if not experiments:
        raise ArtifactError(
            f"{axis_path}: no {min(widths)} layers in a row among {layers[0]} ... {layers[-1]} at "
            f"step {step}; lower capping.widths or capping.step, or extract more layers "
            "(activations.layers)"
        )
    metadata = stage_metadata(
        "calibrate_capping",
        [axis_metadata, projections_metadata],
        widths=list(widths),
        step=step,
        floor_quantiles=list(floor_quantiles),
    )
    config = {"vectors": vectors, "experiments": experiments, "metadata": metadata}
    write_pt(capping_config_path, config)
    write_table(capping_path, pa.Table.from_pylist(records, schema=CAPPING), metadata)


def capping_windows(layers: Sequence[int], widths: Sequence[int], step: int) -> Iterator[range]:
    """Half-open windows of layers in a row, from layer 0 at every step, that ``layers`` contains.

    >>> [f"{w.start}:{w.stop}" for w in capping_windows(range(6), [2, 4], 2)]
    ['0:2', '2:4', '4:6', '0:4', '2:6']
    """
    kept = set(layers)
    for width in widths:
        for start in range(0, max(layers) + 2 - width, step):
            window = range(start, start + width)
            if kept.issuperset(window):
                yield window


def load_capping_config(
    path: str | Path,
    axis: Float[torch.Tensor, "layer hidden"] | None = None,
    layers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Read a capping config: ours, or a published one.

    A cap is only good if it never lowers the projection of what lies under its floor. This is
    tested: with ``axis``, each vector has to point away from the Assistant; without, on what our
    files say of default and roles.

    Args:
        path: A file in the published layout.
        axis: Of the same model.
        layers: The model's layer of each of the axis's; None: all, from 0.

    Returns:
        ``{"vectors": {name: {"vector", "layer"}}, "experiments": [{"id", "interventions":
        [{"vector": name, "cap": float}]}]}`` and, in ours, ``"metadata"``.

    Raises:
        ArtifactError: It is no such file, holds code, does not fit the axis, or would lower
            projections.
    """
    config: dict[str, Any] = read_pt(path, ["vectors", "experiments"])
    try:
        for vector in config["vectors"].values():
            if not isinstance(vector["vector"], torch.Tensor) or vector["vector"].ndim != 1:
                raise TypeError
            vector["layer"] = int(vector["layer"])
        for experiment in config["experiments"]:
            _ = experiment["id"]
            for intervention in experiment["interventions"]:
                _ = config["vectors"][intervention["vector"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{path}: not laid out as a capping config: vectors {{name: {{vector [hidden], "
            "layer}}}} and experiments [{id, interventions [{vector, cap}]}] needed"
        ) from None
    for name, vector in config["vectors"].items():
        where = f"{path}: vector '{name}' at layer {vector['layer']}"
        along = None
        if axis is not None:
            along = axis[layer_position(layers or range(len(axis)), vector["layer"])]
        _check_direction(where, vector, along)
    return config


def build_capping_steerer(
    model: nn.Module, config: Mapping[str, Any], experiment: str | int, **kwargs: Any
) -> ActivationSteering:
    """Make the context manager that caps a model as one experiment says.

    Args:
        model: The model that the config was made for.
        config: As :func:`load_capping_config` gives it.
        experiment: An experiment's id, e.g. ``layers_46:54-p0.25``, or its position in the config.
        kwargs: Further arguments of :class:`axiskit.ActivationSteering`.

    Raises:
        InterventionError: There is no such experiment, it caps nothing, or is of another model.
    """
    expected = config.get("metadata", {}).get("model", {}).get("n_layers")
    if expected is not None and len(decoder_blocks(model)) != expected:
        raise InterventionError(
            f"capping config of {config['metadata']['model']['name']}: made for {expected} layers, "
            f"the model has {len(decoder_blocks(model))}; use the model's own"
        )
    caps = _caps(config, experiment)
    return ActivationSteering(
        model,
        [config["vectors"][name]["vector"] for name, _ in caps],
        layer_indices=[config["vectors"][name]["layer"] for name, _ in caps],
        intervention_type="capping",
        cap_thresholds=[cap for _, cap in caps],
        **kwargs,
    )


def capping_floors(config: Mapping[str, Any], experiment: str | int) -> dict[int, float]:
    """The floor along the axis at each layer that an experiment caps.

    Raises:
        InterventionError: There is no such experiment, or it caps nothing.
    """
    return {config["vectors"][name]["layer"]: -cap for name, cap in _caps(config, experiment)}


def recommended_experiment(config: Mapping[str, Any], n_layers: int) -> str:
    """The experiment to start with where nothing is known: the config's first width and quantile.

    Of its windows the one that starts nearest to 0.7 of the depth, where the published best windows
    do (Qwen3-32B 46 of 64, Llama-3.3-70B 56 of 80).

    Raises:
        InterventionError: The config has no experiments.
    """
    floors = {e["id"]: capping_floors(config, e["id"]) for e in config["experiments"]}
    if not floors:
        raise InterventionError("capping config: no experiments found, at least one needed")
    first = next(iter(floors))
    alike = [
        name
        for name, by_layer in floors.items()
        if len(by_layer) == len(floors[first])
        and str(name).rpartition("-")[2] == str(first).rpartition("-")[2]
    ]
    return str(min(alike, key=lambda name: abs(min(floors[name]) - 0.7 * n_layers)))


def _caps(config: Mapping[str, Any], experiment: str | int) -> list[tuple[str, float]]:
    """Vector name and ceiling of each capping intervention of an experiment."""
    experiments = config["experiments"]
    if isinstance(experiment, int):
        if not -len(experiments) <= experiment < len(experiments):
            raise InterventionError(
                f"experiment {experiment}: the capping config has {len(experiments)}"
            )
        chosen = experiments[experiment]
    else:
        by_id = {entry["id"]: entry for entry in experiments}
        if experiment not in by_id:
            near = difflib.get_close_matches(experiment, list(by_id), n=3, cutoff=0)
            raise InterventionError(
                f"experiment '{experiment}': not in the capping config, which has {len(by_id)}; "
                f"nearest: {', '.join(near) or 'none'}"
            )
        chosen = by_id[experiment]
    caps = [
        (entry["vector"], float(entry["cap"]))
        for entry in chosen["interventions"]
        if "cap" in entry
    ]
    if not caps:
        raise InterventionError(f"experiment '{chosen['id']}': no intervention with a cap in it")
    return caps


def _check_direction(where: str, vector: Mapping[str, Any], axis: torch.Tensor | None) -> None:
    if axis is not None:
        direction = vector["vector"].float()
        if direction.shape != axis.shape:
            raise ArtifactError(
                f"{where}: hidden size {len(direction)}, that of the axis is {len(axis)}; use "
                "files of one model"
            )
        wrong = float(direction @ axis.float()) > 0
    else:
        wrong = vector.get("default_projection", 0.0) > vector.get("role_projection", 0.0)
    if wrong:
        raise ArtifactError(
            f"{where}: points to the Assistant, so a cap along it would lower projections; the "
            "published layout needs vectors that point away from it"
        )


def _vector_name(layer: int) -> str:
    return f"layer_{layer}/role_minus_default"
