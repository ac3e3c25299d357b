"""Response activations: mean of the residual stream over each response's tokens, by layer."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from axiskit.artifacts import read_table, stage_metadata, write_pt
from axiskit.batching import length_sorted_batches, pad, run_halving
from axiskit.errors import NonFiniteError, WriteError
from axiskit.layers import block_output, decoder, decoder_blocks, select_layers
from axiskit.models import load_model
from axiskit.progress import Progress
from axiskit.recipes import RECIPE
from axiskit.rollouts import digest
from axiskit.templates import (
    Messages,
    answer_span,
    chat_messages,
    fold_system,
    render_conversation,
    render_prompt,
)
from axiskit.transcripts import check_messages

_log = logging.getLogger(__name__)


def extract_activations(
    *,
    responses_path: str | Path,
    activations_path: str | Path,
    checkpoint_folder: str | Path,
    shard: str,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
    layers: str | list[int],
    tokens_per_batch: int,
) -> None:
    """Read a shard's responses with the model and write activations/{shard}.pt.

    The means are taken in float32 inside the hooks and stored in bfloat16; only one number a
    rollout, layer and hidden unit leaves the device, for a memory-mapped file: a shard can be
    larger than the memory, and a killed job goes on where it was. Responses without tokens are left
    out.

    Raises:
        NonFiniteError: An activation is NaN or infinite; the rollout is named.
        OutOfMemoryError: A single conversation does not fit.
        WriteError: The disk is full; what was extracted is kept.
    """
    table, inputs = read_table(responses_path)
    rows = table.to_pylist()
    model, tokenizer = load_model(
        model_path, revision=revision, dtype=dtype, chat_template_kwargs=chat_template_kwargs
    )
    selected = select_layers(layers, len(decoder_blocks(model)))
    encoded = [
        encode_response(
            tokenizer,
            row["system_prompt"],
            row["question"],
            row["response"],
            **chat_template_kwargs,
        )
        for row in rows
    ]
    counts = [sum(mask) for _, mask in encoded]
    kept = [i for i, count in enumerate(counts) if count]
    if len(kept) < len(rows):
        _log.warning("%s: %d empty responses left out", responses_path, len(rows) - len(kept))
    shape = (len(kept), len(selected), inputs["model"]["hidden_size"])
    texts = table.select(["rollout_id", "system_prompt", "question", "response"]).to_pylist()
    key = digest(
        RECIPE["extract_activations"], inputs["config_fingerprint"], texts, selected, dtype
    )
    folder = Path(checkpoint_folder) / shard
    with _Checkpoint(folder, key, shape) as checkpoint:
        todo = [position for position in range(len(kept)) if position not in checkpoint.done]

        def means(batch: list[int]) -> torch.Tensor:
            tokens, masks = zip(*(encoded[kept[todo[i]]] for i in batch), strict=True)
            return mean_activations(model, tokens, masks, selected, tokenizer.pad_token_id)

        batches = length_sorted_batches(
            [len(encoded[kept[position]][0]) for position in todo], max_tokens=tokens_per_batch
        )
        with Progress(f"extract_activations {shard}", len(kept), len(checkpoint.done)) as progress:
            for batch, activations in run_halving(batches, means):
                positions = [todo[i] for i in batch]
                for position, activation in zip(positions, activations, strict=True):
                    _check_finite(rows[kept[position]]["rollout_id"], activation, selected)
                checkpoint.save(positions, activations)
                progress.advance(len(batch))
        write_pt(
            activations_path,
            {
                "rollout_id": [rows[i]["rollout_id"] for i in kept],
                "activations": checkpoint.activations,
                "layers": selected,
                "n_tokens": [counts[i] for i in kept],
                "metadata": stage_metadata("extract_activations", [inputs], layers=selected),
            },
        )
    shutil.rmtree(folder, ignore_errors=True)


class _Checkpoint:
    """Activations [rollout, layer, hidden] bfloat16 in a file, and which of them are done.

    A row is listed as done after it is in the file. What another key left in the folder is removed.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int, int]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if not path.name.startswith(key):
                    path.unlink()
            self._list = folder / f"{key}.done"
            self.done = _done_rows(self._list)
            data = folder / f"{key}.bfloat16"
            with open(data, "ab") as file:  # claimed in full: a full disk is told now, not halfway
                size = 2 * math.prod(shape)
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            self._open_list = open(self._list, "a", encoding="ascii")  # noqa: SIM115 (see __exit__)
        except OSError as error:
            raise _no_room(folder, error) from error
        flat = torch.empty(0, dtype=torch.bfloat16)
        if size:
            flat = torch.from_file(str(data), shared=True, size=size // 2, dtype=torch.bfloat16)
        self.activations = flat.reshape(shape)

    def save(self, positions: Sequence[int], activations: torch.Tensor) -> None:
        self.activations[list(positions)] = activations.to(torch.bfloat16)
        try:
            self._open_list.write("".join(f"{position}\n" for position in positions))
            self._open_list.flush()
        except OSError as error:
            raise _no_room(self._list, error) from error

    def __enter__(self) -> _Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # the lines that save could not write, once more
            self._open_list.close()


def _done_rows(path: Path) -> set[int]:
    """Whole lines of the list; a torn last one is cut off, or the next would be joined to it."""
    if not path.exists():
        return set()
    whole = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole[0]) + len(whole[1]))
    return {int(line) for line in whole[0].split()}


def _no_room(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path}: cannot be written: {error.strerror}; make room and run the same command again: "
        "what was extracted is kept"
    )


def _check_finite(rollout_id: str, activation: torch.Tensor, layers: Sequence[int]) -> None:
    if not bool(activation.isfinite().all()):
        layer = layers[int((~activation.isfinite()).any(dim=-1).nonzero()[0, 0])]
        raise NonFiniteError(
            f"rollout {rollout_id}: the activation after layer {layer} is NaN or infinite, finite "
            "ones needed; check the weights, or try model.dtype float32"
        )


def encode_response(
    tokenizer: Any, system_prompt: str, question: str, response: str, **kwargs: Any
) -> tuple[list[int], list[bool]]:
    """Tokens of a rollout, and which of them belong to the answer.

    The prompt is the one that the response was sampled after, and the response follows as it was
    sampled: no template stands between what was generated and what is read, and none can rewrite
    it. The answer is the response without outer white space and thinking; what follows it cannot
    change it and is cut off.

    Args:
        kwargs: model.chat_template_kwargs.
    """
    messages = chat_messages(tokenizer, system_prompt, question, **kwargs)
    prompt = render_prompt(tokenizer, messages, **kwargs)
    tokens: list[int] = list(tokenizer(prompt, add_special_tokens=False).input_ids)
    encoding = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
    answer_start, answer_end = answer_span(response)
    mask = [start < answer_end and end > answer_start for start, end in encoding["offset_mapping"]]
    length = max((i + 1 for i, is_answer in enumerate(mask) if is_answer), default=0)
    return (
        tokens + encoding["input_ids"][:length],
        [False] * len(tokens) + mask[:length],
    )


def encode_conversation(
    tokenizer: Any, conversation: Messages, **kwargs: Any
) -> tuple[list[int], list[list[bool]]]:
    """Tokens of a conversation, and for each assistant turn which of them belong to it.

    Thinking blocks are taken out first, as the model never reads them in earlier turns. A turn's
    tokens are those of its text without outer white space; an empty turn has none. What follows the
    last turn is cut off.

    Args:
        tokenizer: The model's tokenizer.
        conversation: Messages; user and assistant take turns after an optional system message.
        kwargs: model.chat_template_kwargs.

    Raises:
        TranscriptError: The messages do not alternate, or none is the assistant's.
        TemplateError: The template rewrites a response.
    """
    check_messages(conversation)
    messages = [
        {**message, "content": message["content"][slice(*answer_span(message["content"]))]}
        if message["role"] == "assistant"
        else message
        for message in conversation
    ]
    text, spans = render_conversation(
        tokenizer, fold_system(tokenizer, messages, **kwargs), **kwargs
    )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    masks = [
        [start < span_end and end > span_start for start, end in encoding["offset_mapping"]]
        for span_start, span_end in spans
    ]
    length = 1 + max((i for mask in masks for i, used in enumerate(mask) if used), default=0)
    return list(encoding["input_ids"][:length]), [mask[:length] for mask in masks]


def extract_response_activations(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    layers: Sequence[int] | None = None,
    *,
    per_turn: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[torch.Tensor]:
    """Mean residual stream over the assistant's tokens of each conversation.

    Args:
        model: As :func:`axiskit.load_model` gives it.
        tokenizer: Likewise.
        conversations: Each a list of messages, of one turn or many.
        layers: Which layers; None: all. Decoder block i, before any norm that follows.
        per_turn: A mean for each assistant turn, not one over all of them.
        chat_template_kwargs: Passed to the chat template.

    Returns:
        For each conversation [layer, hidden] float32, or [turn, layer, hidden] with ``per_turn``.
        A turn without tokens gives NaN.

    Raises:
        TranscriptError: A conversation has no assistant turn, or its roles do not alternate.
        TemplateError: The template rewrites a response.
        ModelError: A layer does not exist.
    """
    n_layers = len(decoder_blocks(model))
    selected = select_layers("all" if layers is None else list(layers), n_layers)
    results = []
    for conversation in conversations:
        tokens, turns = encode_conversation(tokenizer, conversation, **(chat_template_kwargs or {}))
        masks = turns if per_turn else [[any(used) for used in zip(*turns, strict=True)]]
        weights = torch.tensor(masks, dtype=torch.float32)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        ids = torch.tensor([tokens], device=model.device)
        with torch.inference_mode(), _mean_hooks(model, selected, weights[None]) as means:
            decoder(model)(input_ids=ids, use_cache=False)
        activations = torch.stack([means[layer][0].cpu() for layer in selected], dim=1)
        results.append(activations if per_turn else activations[0])
    return results


@torch.inference_mode()
def token_projections(
    model: Any,
    tokens: Sequence[int],
    axis: Float[torch.Tensor, "layer hidden"],
    layers: Sequence[int],
) -> Float[torch.Tensor, "layer token"]:
    """Projection of every token of one text on the unit axis, in the units of the activations.

    Args:
        model: The model.
        tokens: The text's token ids.
        axis: As :func:`axiskit.compute_axis` gives it.
        layers: The model's layer of each of the axis's.
    """
    unit = torch.nn.functional.normalize(axis.float(), dim=-1)
    projections: dict[int, torch.Tensor] = {}

    def keep(layer: int, direction: torch.Tensor) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = block_output(output)[0].float()
            projections[layer] = (hidden @ direction.to(hidden.device)).cpu()

        return hook

    blocks = decoder_blocks(model)
    handles = [
        blocks[layer].register_forward_hook(keep(layer, direction))
        for layer, direction in zip(layers, unit, strict=True)
    ]
    try:
        decoder(model)(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([projections[layer] for layer in layers])


@torch.inference_mode()
def mean_activations(
    model: Any,
    tokens: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]],
    layers: Sequence[int],
    pad_token_id: int,
) -> Float[torch.Tensor, "batch layer hidden"]:
    """Mean residual stream over the masked tokens of each row, after each of ``layers``, float32.

    Right padding: in a causal model what stands after a token cannot change it. The stack
    [layer, batch, token, hidden] never exists: each hook keeps its means alone. The first token,
    the attention sink, never belongs to a response and is in no mean.
    """
    ids = pad(tokens, pad_token_id, side="right").to(model.device)
    attention = pad([[1] * len(row) for row in tokens], 0, side="right").to(model.device)
    weights = pad(masks, 0, side="right").to(model.device, torch.float32)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    with _mean_hooks(model, layers, weights[:, None]) as means:
        decoder(model)(input_ids=ids, attention_mask=attention, use_cache=False)
    return torch.stack([means[layer][:, 0].cpu() for layer in layers], dim=1)


@contextmanager
def _mean_hooks(
    model: Any, layers: Sequence[int], weights: torch.Tensor
) -> Iterator[dict[int, torch.Tensor]]:
    """Means [batch, part, hidden] of each layer, by weights [batch, part, token]."""
    means: dict[int, torch.Tensor] = {}
    blocks = decoder_blocks(model)

    def keep_mean(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = block_output(output).float()
            means[layer] = torch.bmm(weights.to(hidden.device), hidden)

        return hook

    handles = [blocks[layer].register_forward_hook(keep_mean(layer)) for layer in layers]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
