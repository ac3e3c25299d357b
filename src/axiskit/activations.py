"""Response activations: mean of the residual stream over each response's tokens, by layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from transformers import BatchEncoding

from axiskit.artifacts import read_pt, read_table, stage_metadata, write_pt
from axiskit.batching import length_sorted_batches, pad, run_halving
from axiskit.errors import NonFiniteError
from axiskit.layers import block_output, decoder, decoder_blocks, select_layers
from axiskit.models import load_model
from axiskit.progress import Progress
from axiskit.recipes import RECIPE
from axiskit.rollouts import digest
from axiskit.templates import Messages, chat_messages, render_conversation

_log = logging.getLogger(__name__)

_ROLLOUTS_PER_CHECKPOINT = 512


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
    rollout, layer and hidden unit leaves the device. Responses without tokens are left out. Every
    512 rollouts a checkpoint is kept until the shard is complete, so a killed job goes on from it.

    Raises:
        NonFiniteError: An activation is NaN or infinite; the rollout is named.
        OutOfMemoryError: A single conversation does not fit.
    """
    table, inputs = read_table(responses_path)
    rows = table.to_pylist()
    model, tokenizer = load_model(
        model_path, revision=revision, dtype=dtype, chat_template_kwargs=chat_template_kwargs
    )
    selected = select_layers(layers, len(decoder_blocks(model)))
    conversations: list[Messages] = [
        [
            *chat_messages(
                tokenizer, row["system_prompt"], row["question"], **chat_template_kwargs
            ),
            {"role": "assistant", "content": row["response"]},
        ]
        for row in rows
    ]
    ids = [row["rollout_id"] for row in rows]
    checkpoint = Path(checkpoint_folder) / digest(
        RECIPE["extract_activations"],
        inputs["config_fingerprint"],
        table.column("response").to_pylist(),
        selected,
        dtype,
    )
    done: dict[str, tuple[torch.Tensor, int]] = {}
    parts = sorted(checkpoint.glob("*.pt"))
    for part in parts:
        saved = read_pt(part, ["rollout_id", "activations", "n_tokens"])
        done |= {
            rollout_id: (saved["activations"][i], saved["n_tokens"][i])
            for i, rollout_id in enumerate(saved["rollout_id"])
        }
    encoded = [
        encode_responses(tokenizer, messages, **chat_template_kwargs) for messages in conversations
    ]
    todo = [i for i, rollout_id in enumerate(ids) if rollout_id not in done]
    unsaved: list[str] = []

    def save_checkpoint() -> None:
        if unsaved:
            write_pt(
                checkpoint / f"{len(list(checkpoint.glob('*.pt'))):05d}.pt",
                {
                    "rollout_id": list(unsaved),
                    "activations": torch.stack([done[i][0] for i in unsaved]),
                    "n_tokens": [done[i][1] for i in unsaved],
                },
            )
            unsaved.clear()

    with Progress(f"extract_activations {shard}", len(ids), len(done)) as progress:
        batches = length_sorted_batches(
            [len(encoded[i][0]) for i in todo], max_tokens=tokens_per_batch
        )

        def means(batch: list[int]) -> torch.Tensor:
            tokens = [encoded[todo[i]][0] for i in batch]
            masks = [encoded[todo[i]][1] for i in batch]
            return mean_activations(model, tokens, masks, selected, tokenizer.pad_token_id)

        for batch, activations in run_halving(batches, means):
            for i, activation in zip(batch, activations, strict=True):
                rollout_id = ids[todo[i]]
                n_tokens = sum(encoded[todo[i]][1])
                if n_tokens and not bool(activation.isfinite().all()):
                    layer = selected[int((~activation.isfinite()).any(dim=-1).nonzero()[0, 0])]
                    raise NonFiniteError(
                        f"rollout {rollout_id}: the activation after layer {layer} is NaN or "
                        "infinite, finite ones needed; check the weights, or try model.dtype "
                        "float32"
                    )
                done[rollout_id] = (activation.to(torch.bfloat16), n_tokens)
                unsaved.append(rollout_id)
            progress.advance(len(batch))
            if len(unsaved) >= _ROLLOUTS_PER_CHECKPOINT:
                save_checkpoint()
    kept = [rollout_id for rollout_id in ids if done[rollout_id][1] > 0]
    if len(kept) < len(ids):
        _log.warning("%s: %d empty responses left out", responses_path, len(ids) - len(kept))
    empty = torch.empty(0, len(selected), inputs["model"]["hidden_size"], dtype=torch.bfloat16)
    write_pt(
        activations_path,
        {
            "rollout_id": kept,
            "activations": torch.stack([done[i][0] for i in kept]) if kept else empty,
            "layers": selected,
            "n_tokens": [done[i][1] for i in kept],
            "metadata": stage_metadata("extract_activations", [inputs], layers=selected),
        },
    )
    for part in checkpoint.glob("*.pt"):
        part.unlink()
    if checkpoint.exists():
        checkpoint.rmdir()


def encode_responses(
    tokenizer: Any, messages: Messages, **kwargs: Any
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and which of them belong to a response.

    A token counts when any of its characters lies in a response span. What follows the last
    response cannot change it and is cut off.
    """
    text, spans = render_conversation(tokenizer, messages, **kwargs)
    encoding: BatchEncoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [
        any(start < span_end and end > span_start for span_start, span_end in spans)
        for start, end in encoding["offset_mapping"]
    ]
    length = max((i + 1 for i, is_response in enumerate(mask) if is_response), default=1)
    return encoding["input_ids"][:length], mask[:length]


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
    with _mean_hooks(model, layers, weights) as means:
        decoder(model)(input_ids=ids, attention_mask=attention, use_cache=False)
    return torch.stack([means[layer].cpu() for layer in layers], dim=1)


@contextmanager
def _mean_hooks(
    model: Any, layers: Sequence[int], weights: torch.Tensor
) -> Iterator[dict[int, torch.Tensor]]:
    means: dict[int, torch.Tensor] = {}
    blocks = decoder_blocks(model)

    def keep_mean(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = block_output(output).float()
            means[layer] = torch.einsum("bt,bth->bh", weights.to(hidden.device), hidden)

        return hook

    handles = [blocks[layer].register_forward_hook(keep_mean(layer)) for layer in layers]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
