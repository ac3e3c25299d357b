"""Responses of a shard's rollouts, with transformers: batched, journaled, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import torch

from axiskit.artifacts import stage_metadata, write_table
from axiskit.batching import length_sorted_batches, pad, run_halving
from axiskit.estimate import activation_bytes, check_room
from axiskit.journal import Journal
from axiskit.layers import select_layers, target_layer
from axiskit.models import (
    load_model,
    load_tokenizer,
    model_fingerprint,
    model_metadata,
    stop_token_ids,
)
from axiskit.progress import Progress
from axiskit.questions import load_questions
from axiskit.recipes import RECIPE
from axiskit.roles import load_role
from axiskit.rollouts import digest, plan_rollouts
from axiskit.sampling import SeededSampler
from axiskit.templates import chat_messages, check_template, render_prompt

RESPONSES = pa.schema(
    [
        ("rollout_id", pa.string()),
        ("role", pa.string()),
        ("kind", pa.string()),
        ("prompt_index", pa.int32()),
        ("question_index", pa.int32()),
        ("system_prompt", pa.string()),
        ("question", pa.string()),
        ("response", pa.string()),
        ("n_tokens", pa.int32()),
        ("log_likelihood", pa.float64()),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
    ]
)
"""Columns of responses/{shard}.parquet.

log_likelihood is that of the response under its own prompt, at temperature 1, in nats, summed over
tokens; finish_reason is ``stop`` or ``length``.
"""


class Sampling(TypedDict):
    """How tokens are picked: see config/config.yaml."""

    temperature: float
    top_p: float
    max_new_tokens: int


def generate_responses(
    *,
    role_paths: Sequence[str | Path],
    questions_path: str | Path,
    responses_path: str | Path,
    journal_folder: str | Path,
    shard: str,
    name: str,
    display_name: str,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
    n_questions: int,
    prompts_per_role: int,
    default_prompts: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    layers: str | list[int],
    target_layer_setting: str | int,
    n_rollouts_in_all: int | None = None,
) -> None:
    """Answer every question as every role of a shard and write responses/{shard}.parquet.

    Each finished response goes to the journal at once; a run that was killed asks only for what is
    missing. In float32 a response does not depend on shard, batch size or order.

    Args:
        n_rollouts_in_all: Rollouts of all shards, for whose activations the disk has to have room;
            None: it is not looked at.

    Raises:
        RoleError, QuestionError, TemplateError, ModelError: Bad input, or layers (extracted later)
            that the model does not have; told before the model is loaded.
        DiskError: There is no room for the activations that come next.
        NonFiniteError: The model's logits are not numbers; the rollout is named.
        WriteError: The disk is full; finished rows are kept.
    """
    rollouts = plan_rollouts(
        [load_role(path) for path in role_paths],
        load_questions(questions_path, n_questions),
        prompts_per_role=prompts_per_role,
        default_prompts=default_prompts,
        model_name=display_name,
        seed=seed,
    )
    tokenizer = load_tokenizer(model_path, revision=revision)
    check_template(tokenizer, **chat_template_kwargs)
    fingerprint = model_fingerprint(model_path, revision=revision)
    model_facts = model_metadata(
        tokenizer,
        name=name,
        path=model_path,
        fingerprint=fingerprint,
        revision=revision,
        dtype=dtype,
        chat_template_kwargs=chat_template_kwargs,
    )
    n_layers = model_facts["n_layers"]
    selected = select_layers(layers, n_layers)
    target_layer(target_layer_setting, selected, n_layers)
    if n_rollouts_in_all is not None:
        needed = activation_bytes(n_rollouts_in_all, len(selected), model_facts["hidden_size"])
        check_room(Path(responses_path).parents[1], {"extract_activations": needed})
    sampling: Sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    prompts = {
        rollout.rollout_id: render_prompt(
            tokenizer,
            chat_messages(
                tokenizer, rollout.system_prompt, rollout.question, **chat_template_kwargs
            ),
            **chat_template_kwargs,
        )
        for rollout in rollouts
    }
    keys = {
        rollout.rollout_id: digest(
            RECIPE["generate_responses"],
            fingerprint,
            dtype,
            prompts[rollout.rollout_id],
            sampling,
            rollout.seed,
        )
        for rollout in rollouts
    }
    with Journal(journal_folder, shard) as journal:
        rows = journal.read(set(keys.values()))
        missing = [rollout for rollout in rollouts if keys[rollout.rollout_id] not in rows]
        model: Any = None
        if missing:  # with all rows in the journal no minutes are spent on loading the model
            model, tokenizer = load_model(
                model_path,
                revision=revision,
                dtype=dtype,
                chat_template_kwargs=chat_template_kwargs,
            )
        with Progress(f"generate_responses {shard}", len(rollouts), len(rows)) as progress:
            tokens = {
                rollout.rollout_id: tokenizer(
                    prompts[rollout.rollout_id], add_special_tokens=False
                ).input_ids
                for rollout in missing
            }
            batches = length_sorted_batches(
                [len(tokens[rollout.rollout_id]) for rollout in missing], max_rows=batch_size
            )

            def answer(batch: list[int]) -> list[dict[str, Any]]:
                batch_rollouts = [missing[i] for i in batch]
                batch_tokens = [tokens[rollout.rollout_id] for rollout in batch_rollouts]
                return sample_responses(
                    model,
                    tokenizer,
                    batch_tokens,
                    seeds=[rollout.seed for rollout in batch_rollouts],
                    names=[rollout.rollout_id for rollout in batch_rollouts],
                    **sampling,
                )

            for batch, answers in run_halving(batches, answer):
                for i, row in zip(batch, answers, strict=True):
                    key = keys[missing[i].rollout_id]
                    journal.append(key, row)
                    rows[key] = row
                progress.advance(len(batch))
    table = pa.Table.from_pylist(
        [
            {**asdict(rollout), **_without_key(rows[keys[rollout.rollout_id]])}
            for rollout in rollouts
        ],
        schema=RESPONSES,
    )
    metadata = stage_metadata(
        "generate_responses",
        [],
        engine="transformers",
        **sampling,
        seed=seed,
        n_questions=n_questions,
        prompts_per_role=prompts_per_role,
        default_prompts=default_prompts,
    )
    metadata["model"] = model_facts
    write_table(responses_path, table, metadata)


@torch.inference_mode()
def sample_responses(
    model: Any,
    tokenizer: Any,
    prompt_tokens: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    names: Sequence[str],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    streamer: Any = None,
) -> list[dict[str, Any]]:
    """Sample one response after each prompt, as one left-padded batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompt_tokens: Token ids of each prompt.
        seeds: One seed a prompt: all its randomness.
        names: One name a prompt, for errors.
        temperature: 0 takes the most likely token.
        top_p: Share of probability that is sampled from.
        max_new_tokens: Longest response.
        streamer: As transformers takes it, for a single prompt.

    Returns:
        For each prompt its ``response``, ``n_tokens`` (the stop token not counted),
        ``log_likelihood`` (nats, at temperature 1, summed over these tokens) and
        ``finish_reason``: ``stop`` at a stop token, ``length`` at ``max_new_tokens``.
    """
    stops = stop_token_ids(model, tokenizer)
    width = max(map(len, prompt_tokens))
    mask = pad([[1] * len(row) for row in prompt_tokens], 0, side="left")
    sampler = SeededSampler(
        seeds,
        names,
        prompt_width=width,
        temperature=temperature,
        top_p=top_p,
    )
    output = model.generate(
        input_ids=pad(prompt_tokens, tokenizer.pad_token_id, side="left").to(model.device),
        attention_mask=mask.to(model.device),
        logits_processor=[sampler],
        do_sample=False,
        max_new_tokens=max_new_tokens,
        streamer=streamer,
    )
    log_likelihoods = torch.stack(sampler.log_likelihoods, dim=-1).double().cpu()
    answers = []
    for row, log_likelihood in zip(output[:, width:].tolist(), log_likelihoods, strict=True):
        length = next((i for i, token in enumerate(row) if token in stops), len(row))
        answers.append(
            {
                "response": tokenizer.decode(row[:length], skip_special_tokens=True),
                "n_tokens": length,
                "log_likelihood": float(log_likelihood[:length].sum()),
                "finish_reason": "stop" if length < len(row) else "length",
            }
        )
    return answers


def _without_key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "key"}
