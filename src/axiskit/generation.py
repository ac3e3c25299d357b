"""Responses of a shard's rollouts: planned, sampled by an engine, journaled, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import torch

from axiskit import vllm_engine
from axiskit.artifacts import stage_metadata, write_table
from axiskit.batching import length_sorted_batches, pad, run_halving
from axiskit.disk import activation_bytes, check_room
from axiskit.errors import ModelError
from axiskit.journal import Journal
from axiskit.layers import select_layers, target_layer
from axiskit.models import (
    load_model,
    load_tokenizer,
    max_tokens,
    model_fingerprint,
    model_metadata,
    read_stop_token_ids,
    stop_token_ids,
)
from axiskit.progress import Progress
from axiskit.questions import load_questions
from axiskit.recipes import RECIPE
from axiskit.rollouts import Rollout, digest, plan_rollouts
from axiskit.sampling import SeededSampler
from axiskit.templates import chat_messages, check_template, render_prompt
from axiskit.traits import load_characters

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
    engine: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    n_gpus: int,
    vllm: Mapping[str, Any],
    layers: str | list[int],
    target_layer_setting: str | int,
    n_rollouts_in_all: int | None = None,
) -> None:
    """Answer every question as every role of a shard and write responses/{shard}.parquet.

    Each finished response goes to the journal at once; a run that was killed asks only for what is
    missing. In float32 a response does not depend on shard, batch size or order. The engines sample
    different texts from the same seed, but for temperature 0.

    Args:
        engine: ``transformers`` or ``vllm``.
        n_gpus: GPUs that vLLM splits the model over; transformers takes all that it sees.
        vllm: ``gpu_memory_utilization`` and ``enforce_eager``, for vLLM.
        n_rollouts_in_all: Rollouts of all shards, for whose activations the disk has to have room;
            None: it is not looked at.

    Raises:
        ConfigError: vLLM is not installed.
        RoleError, QuestionError, TemplateError, ModelError: Bad input, or layers (extracted later)
            that the model does not have; told before the model is loaded. It cannot be loaded.
        DiskError: There is no room for the activations that come next.
        NonFiniteError: The model's logits are not numbers; the rollout is named.
        WriteError: The disk is full; finished rows are kept.
    """
    if engine == "vllm":
        vllm_engine.require_package()
    rollouts = plan_rollouts(
        load_characters(role_paths),
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
        rollout.rollout_id: rollout_prompt(tokenizer, rollout, **chat_template_kwargs)
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
            *([] if engine == "transformers" else [engine]),
        )
        for rollout in rollouts
    }
    with Journal(journal_folder, shard) as journal:
        rows = journal.read(set(keys.values()))
        missing = [rollout for rollout in rollouts if keys[rollout.rollout_id] not in rows]
        tokens = [
            tokenizer(prompts[rollout.rollout_id], add_special_tokens=False).input_ids
            for rollout in missing
        ]
        with Progress(f"generate_responses {shard}", len(rollouts), len(rows)) as progress:
            arguments = (missing, tokens, model_facts, sampling, batch_size)
            answered = (
                _with_vllm(*arguments, tokenizer, max(1, n_gpus), vllm)
                if engine == "vllm"
                else _with_transformers(*arguments)
            )
            # with all rows in the journal no minutes are spent on loading the model
            for batch, answers in answered if missing else ():
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
        engine=engine,
        **sampling,
        seed=seed,
        n_questions=n_questions,
        prompts_per_role=prompts_per_role,
        default_prompts=default_prompts,
    )
    metadata["model"] = model_facts
    if engine == "vllm":
        metadata["versions"]["vllm"] = vllm_engine.version()
    write_table(responses_path, table, metadata)


def rollout_prompt(tokenizer: Any, rollout: Rollout, **kwargs: Any) -> str:
    """The text after which the model writes a rollout's response."""
    messages = chat_messages(tokenizer, rollout.system_prompt, rollout.question, **kwargs)
    return render_prompt(tokenizer, messages, **kwargs)


Answered = Iterator[tuple[list[int], list[dict[str, Any]]]]
"""Indices of a batch of rollouts, and a row for each of them."""


def _with_transformers(
    rollouts: Sequence[Rollout],
    tokens: Sequence[list[int]],
    facts: Mapping[str, Any],
    sampling: Sampling,
    batch_size: int,
) -> Answered:
    model, tokenizer = load_model(
        facts["path"],
        revision=facts["revision"],
        dtype=facts["dtype"],
        chat_template_kwargs=facts["chat_template_kwargs"],
    )

    def answer(batch: list[int]) -> list[dict[str, Any]]:
        return sample_responses(
            model,
            tokenizer,
            [tokens[i] for i in batch],
            seeds=[rollouts[i].seed for i in batch],
            names=[rollouts[i].rollout_id for i in batch],
            **sampling,
        )

    yield from run_halving(
        length_sorted_batches(list(map(len, tokens)), max_rows=batch_size), answer
    )


def _with_vllm(
    rollouts: Sequence[Rollout],
    tokens: Sequence[list[int]],
    facts: Mapping[str, Any],
    sampling: Sampling,
    batch_size: int,
    tokenizer: Any,
    n_gpus: int,
    settings: Mapping[str, Any],
) -> Answered:
    longest, i = max((len(row), i) for i, row in enumerate(tokens))
    limit = max_tokens(facts["path"], revision=facts["revision"])
    if limit is not None and longest + sampling["max_new_tokens"] > limit:
        raise ModelError(
            f"rollout {rollouts[i].rollout_id}: {longest} tokens of prompt and "
            f"{sampling['max_new_tokens']} of response (generation.max_new_tokens), the model "
            f"reads {limit}; lower it, or shorten the prompt"
        )
    stops = read_stop_token_ids(
        facts["path"], tokenizer, revision=facts["revision"], **facts["chat_template_kwargs"]
    )
    llm = vllm_engine.load_llm(
        facts["path"],
        revision=facts["revision"],
        dtype=facts["dtype"],
        max_tokens=longest + sampling["max_new_tokens"],
        n_gpus=n_gpus,
        **settings,
    )
    for start in range(0, len(rollouts), batch_size):
        batch = range(start, min(start + batch_size, len(rollouts)))
        answers = vllm_engine.sample(
            llm,
            [tokens[i] for i in batch],
            seeds=[rollouts[i].seed for i in batch],
            names=[rollouts[i].rollout_id for i in batch],
            stop_token_ids=stops,
            **sampling,
        )
        yield list(batch), [_row(tokenizer, *answer, stops) for answer in answers]


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
    return [
        _row(tokenizer, tokens, of_tokens, stops)
        for tokens, of_tokens in zip(
            output[:, width:].tolist(), log_likelihoods.tolist(), strict=True
        )
    ]


def _row(
    tokenizer: Any, tokens: list[int], log_likelihoods: list[float], stops: Sequence[int]
) -> dict[str, Any]:
    """What is kept of sampled tokens: those before the first stop token."""
    length = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return {
        "response": tokenizer.decode(tokens[:length], skip_special_tokens=True),
        "n_tokens": length,
        "log_likelihood": float(torch.tensor(log_likelihoods[:length], dtype=torch.float64).sum()),
        "finish_reason": "stop" if length < len(tokens) else "length",
    }


def _without_key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "key"}
