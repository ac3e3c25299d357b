"""Where a model keeps its decoder blocks: the only place that knows architectures."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import nn

from axiskit.errors import ModelError

_BLOCK_PATHS = (
    "model.layers",  # Llama, Qwen, Gemma, Mistral, OLMo, Phi-3 and most others
    "model.language_model.layers",  # the text part of a multimodal model, e.g. Gemma 3
    "transformer.h",  # GPT-2
    "gpt_neox.layers",  # GPT-NeoX, Pythia
)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in order. Layer i is the residual stream after block i.

    Raises:
        ModelError: The architecture is not known here.
    """
    for path in _BLOCK_PATHS:
        try:
            blocks = attrgetter(path)(model)
        except AttributeError:
            continue
        if isinstance(blocks, nn.ModuleList):
            return blocks
    raise ModelError(
        f"{type(model).__name__}: no decoder blocks found under {', '.join(_BLOCK_PATHS)}; "
        "add its path to axiskit/layers.py"
    )


def decoder(model: nn.Module) -> nn.Module:
    """The model without its language-model head: runs the blocks, computes no logits."""
    base: nn.Module = model.base_model  # type: ignore[assignment]  # set by transformers
    return base


def block_output(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The residual stream [batch, token, hidden] in what a decoder block returns."""
    return output if isinstance(output, torch.Tensor) else output[0]


def select_layers(layers: str | list[int], n_layers: int) -> list[int]:
    """``"all"``, or the listed layers, sorted and checked against the model's number of layers.

    Raises:
        ModelError: A listed layer does not exist.
    """
    if isinstance(layers, str):
        return list(range(n_layers))
    wrong = [layer for layer in layers if not 0 <= layer < n_layers]
    if wrong:
        raise ModelError(
            f"layer {wrong[0]}: the model has {n_layers} layers, 0 to {n_layers - 1} are possible "
            "(activations.layers)"
        )
    return sorted(set(layers))


def target_layer(setting: str | int, layers: list[int], n_layers: int) -> int:
    """The layer at which results are shown: ``"auto"`` is the middle of the model.

    Raises:
        ModelError: It is not among the extracted layers.

    >>> target_layer("auto", list(range(30)), 30)
    15
    """
    layer = n_layers // 2 if isinstance(setting, str) else setting
    if layer not in layers:
        raise ModelError(
            f"layer {layer} (model.target_layer) is not among the extracted layers "
            f"{layers[0]} ... {layers[-1]} (activations.layers) of a model with {n_layers} layers; "
            "add it there or name another"
        )
    return layer
