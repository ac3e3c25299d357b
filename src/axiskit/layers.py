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
_BLOCK_PATH_KEY = "decoder_blocks_path"


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in order. Layer i is the residual stream after block i.

    An architecture that is not known here names them itself: ``decoder_blocks_path`` in its config.

    Raises:
        ModelError: The architecture is not known, or there are no blocks where its config says.
    """
    named = getattr(getattr(model, "config", None), _BLOCK_PATH_KEY, None)
    paths = (named,) if named else _BLOCK_PATHS
    for path in paths:
        try:
            blocks = attrgetter(path)(model)
        except AttributeError:
            continue
        if isinstance(blocks, nn.ModuleList):
            return blocks
    raise ModelError(
        f"{type(model).__name__}: no list of decoder blocks found under {', '.join(paths)}; name "
        f"it with '{_BLOCK_PATH_KEY}' in the model's config.json, or before use with "
        f"model.config.{_BLOCK_PATH_KEY} = 'path.to.blocks'"
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
