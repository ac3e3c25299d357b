"""Where each turn of a conversation stands along the axis."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from axiskit.activations import encode_conversation, token_projections
from axiskit.artifacts import stage_metadata, write_table
from axiskit.axis import layer_position, read_axis
from axiskit.errors import NonFiniteError
from axiskit.layers import target_layer
from axiskit.models import check_length, load_model
from axiskit.progress import Progress
from axiskit.templates import Messages
from axiskit.transcripts import load_transcript

_log = logging.getLogger(__name__)


def project_conversations(
    *,
    conversation_paths: Sequence[str | Path],
    transcript_paths: Sequence[str | Path],
    axis_path: str | Path,
    trajectories_path: str | Path,
    target_layer_setting: str | int,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
) -> None:
    """Read conversations with the model as it is and write trajectories.parquet.

    One row an assistant turn: mean projection over its tokens at each layer, and the projection of
    each token at the target layer. No intervention is active: the table shows what the texts do to
    the unchanged model, not what a cap did to its activations.

    Args:
        conversation_paths: Held ones, ``{name}.{condition}.json``.
        transcript_paths: Recorded ones, of whatever model, in the published shape.
        axis_path: axis.pt.
        trajectories_path: The table.
        target_layer_setting: model.target_layer.
        model_path: Hugging Face id or folder.
        revision: Branch, tag or commit of a Hugging Face id.
        dtype: Precision in which the model runs.
        chat_template_kwargs: Passed to the chat template.

    Raises:
        TranscriptError: A file is malformed, or longer than what the model reads.
        ArtifactError: A held conversation is of another model than the axis.
        NonFiniteError: A projection is NaN or infinite; file and turn are named.
    """
    axis, axis_metadata = read_axis(axis_path)
    layers = list(axis_metadata["layers"])
    target = target_layer(target_layer_setting, layers, axis_metadata["model"]["n_layers"])
    metadatas, texts = [axis_metadata], []
    for path in conversation_paths:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        metadata = content["metadata"]
        metadatas.append({"model": metadata["model"], "stages": {}})
        labels = {key: content[key] for key in ("domain", "condition")}
        texts.append(({"conversation": content["name"], **labels}, content["conversation"]))
    for path in transcript_paths:
        transcript = load_transcript(path)
        labels = {"conversation": Path(path).stem, "domain": None, "condition": "transcript"}
        texts.append((labels, transcript.messages))
    metadata = stage_metadata("project_conversations", metadatas, target_layer=target)
    metadata["target_layer"], metadata["layers"] = target, layers
    model, tokenizer = load_model(
        model_path, revision=revision, dtype=dtype, chat_template_kwargs=chat_template_kwargs
    )
    rows: list[dict[str, Any]] = []
    with Progress("project_conversations", len(texts), unit="conversations") as progress:
        for labels, messages in texts:
            turns = project_turns(
                model,
                tokenizer,
                messages,
                axis,
                layers,
                target,
                where=f"conversation '{labels['conversation']}'",
                **chat_template_kwargs,
            )
            rows += [labels | turn for turn in turns]
            progress.advance(1)
    write_table(
        trajectories_path, pa.Table.from_pylist(rows, schema=trajectory_schema(layers)), metadata
    )


def trajectory_schema(layers: Sequence[int]) -> pa.Schema:
    """Columns of trajectories.parquet; an empty turn has null projections."""
    return pa.schema(
        [
            ("conversation", pa.string()),
            ("domain", pa.string()),
            ("condition", pa.string()),
            ("turn", pa.int32()),
            ("n_tokens", pa.int32()),
            ("tokens", pa.list_(pa.string())),
            ("token_projections", pa.list_(pa.float32())),
            *((f"layer_{layer}", pa.float32()) for layer in layers),
        ]
    )


def project_turns(
    model: Any,
    tokenizer: Any,
    messages: Messages,
    axis: torch.Tensor,
    layers: Sequence[int],
    layer: int,
    *,
    where: str = "conversation",
    **kwargs: Any,
) -> list[dict[str, Any]]:
    """Projections of each assistant turn of a conversation, in one pass over it.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        messages: The conversation.
        axis: [layer, hidden].
        layers: The model's layer of each of the axis's.
        layer: The layer at which each token is given.
        where: What errors call the conversation.
        kwargs: model.chat_template_kwargs.

    Returns:
        For each assistant turn ``turn`` (from 0), ``n_tokens``, ``tokens`` (texts),
        ``token_projections`` (at ``layer``) and ``layer_<i>`` (means over its tokens; None for an
        empty turn).

    Raises:
        TranscriptError: It is longer than what the model reads, or as
            :func:`axiskit.activations.encode_conversation`.
        TemplateError: The template rewrites a response.
        NonFiniteError: A projection is NaN or infinite; the turn is named, from 1.
    """
    tokens, masks = encode_conversation(tokenizer, messages, **kwargs)
    check_length(model, len(tokens), where)
    projections = token_projections(model, tokens, axis, layers)
    position = layer_position(layers, layer)
    turns = []
    for turn, mask in enumerate(masks):
        used = torch.tensor(mask)
        chosen = projections[:, used]
        if not bool(chosen.isfinite().all()):
            raise NonFiniteError(
                f"{where}, turn {turn + 1}: a projection is NaN or infinite, finite ones needed; "
                "check the weights, or try float32 (model.dtype, --dtype)"
            )
        means = chosen.mean(dim=-1).tolist() if chosen.shape[-1] else [None] * len(layers)
        texts = [tokenizer.decode([t]) for t, is_used in zip(tokens, mask, strict=True) if is_used]
        turns.append(
            {
                "turn": turn,
                "n_tokens": len(texts),
                "tokens": texts,
                "token_projections": chosen[position].tolist(),
                **{f"layer_{i}": mean for i, mean in zip(layers, means, strict=True)},
            }
        )
    return turns
