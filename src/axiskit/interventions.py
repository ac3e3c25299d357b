"""What is done to a model, in words and numbers, before there is a model to do it to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from axiskit.axis import layer_position
from axiskit.capping import build_capping_steerer, capping_floors
from axiskit.rollouts import digest
from axiskit.steering import ActivationSteering


@dataclass(frozen=True)
class Intervention:
    """An intervention that a run or a command asks for.

    Attributes:
        description: Type and numbers, as they stand in files.
        key: A hash of all that determines it, its vectors too.
        on: Makes the context manager for a model.
    """

    description: dict[str, Any]
    key: str
    on: Callable[[Any], ActivationSteering]

    def __str__(self) -> str:
        if self.description["type"] == "capping":
            return f"capped by {self.description['experiment']}"
        return f"steered {self.description['coefficient']:+g} at layer {self.description['layer']}"


def steered(
    axis: Float[torch.Tensor, "layer hidden"],
    layers: Sequence[int],
    layer: int,
    coefficient: float,
) -> Intervention:
    """A multiple of the axis, added at one layer.

    Args:
        axis: As :func:`axiskit.compute_axis` gives it.
        layers: The model's layer of each of the axis's.
        layer: Where it is added.
        coefficient: Above 0 towards the Assistant.

    Raises:
        ArtifactError: The axis does not have the layer.
    """
    vector = axis[layer_position(layers, layer)]
    description = {"type": "addition", "layer": layer, "coefficient": coefficient}
    return Intervention(
        description,
        _key(description, [vector]),
        lambda model: ActivationSteering(
            model, vector, layer_indices=layer, coefficients=coefficient
        ),
    )


def capped(config: Mapping[str, Any], experiment: str) -> Intervention:
    """An experiment of a capping config.

    Args:
        config: As :func:`axiskit.load_capping_config` gives it.
        experiment: Its id.

    Raises:
        InterventionError: There is no such experiment, or it caps nothing.
    """
    floors = capping_floors(config, experiment)
    description = {
        "type": "capping",
        "experiment": experiment,
        "floors": {str(layer): floor for layer, floor in floors.items()},
    }
    vectors = [v["vector"] for v in config["vectors"].values() if v["layer"] in floors]
    return Intervention(
        description,
        _key(description, vectors),
        lambda model: build_capping_steerer(model, config, experiment),
    )


def _key(description: Mapping[str, Any], vectors: Sequence[torch.Tensor]) -> str:
    content = b"".join(vector.float().numpy().tobytes() for vector in vectors)
    return digest(description, hashlib.sha256(content).hexdigest())
