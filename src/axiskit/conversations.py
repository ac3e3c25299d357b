"""Scripted conversations held with a model: as it is, capped, steered away from the Assistant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from axiskit.artifacts import check_same_model, stage_metadata, write_text
from axiskit.axis import read_axis
from axiskit.batching import length_sorted_batches, run_halving
from axiskit.capping import load_capping_config, recommended_experiment
from axiskit.chat import conversation_prompt
from axiskit.errors import TranscriptError
from axiskit.generation import Sampling, sample_responses
from axiskit.interventions import Intervention, capped, steered
from axiskit.journal import Journal
from axiskit.layers import target_layer
from axiskit.models import (
    load_model,
    load_tokenizer,
    max_tokens,
    model_fingerprint,
    model_metadata,
)
from axiskit.progress import Progress
from axiskit.recipes import RECIPE
from axiskit.rollouts import digest
from axiskit.steering import InterventionStats
from axiskit.templates import Messages
from axiskit.transcripts import load_script


def hold_conversation(
    *,
    script_paths: Sequence[str | Path],
    axis_path: str | Path | None,
    capping_config_path: str | Path | None,
    conversation_paths: Sequence[str | Path],
    journal_folder: str | Path,
    condition: str,
    experiment: str,
    away_coefficient: float,
    target_layer_setting: str | int,
    name: str,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
    temperature: float,
    top_p: float,
    max_turns: int | None,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
) -> None:
    """Answer the user turns of all scripts under one condition; write one JSON file a script.

    The scripts are answered turn by turn, all at once. An answer goes to the journal when it is
    finished, so a killed run goes on at the turn where it was. A turn has the same seed in all
    conditions.

    Args:
        script_paths: resources/conversations/*.yaml.
        axis_path: axis.pt; None for ``unsteered``.
        capping_config_path: capping_config.pt; for ``capped`` only.
        conversation_paths: One output for each script.
        journal_folder: Where finished answers are kept.
        condition: One of :data:`axiskit.config.CONDITIONS`.
        experiment: Of the capping config, or ``auto``.
        away_coefficient: Multiplies the axis at the target layer.
        target_layer_setting: model.target_layer.
        name: model.name.
        model_path: Hugging Face id or folder.
        revision: Branch, tag or commit of a Hugging Face id.
        dtype: Precision in which the model runs.
        chat_template_kwargs: Passed to the chat template.
        temperature: 0 takes the most likely token.
        top_p: Share of probability that is sampled from.
        max_turns: Turns of each script that are held; None: all.
        max_new_tokens: Longest answer.
        seed: Every turn derives its own from it.
        batch_size: Scripts at once.

    Raises:
        TranscriptError: A script is bad, or longer than what the model can read.
        ArtifactError, InterventionError: Axis or caps do not fit the model.
        NonFiniteError: The model's logits are not numbers; conversation and turn are named.
        WriteError: The disk is full; finished answers are kept.
    """
    scripts = {script.name: script for script in map(load_script, script_paths)}
    turns = {title: script.turns[:max_turns] for title, script in scripts.items()}
    tokenizer = load_tokenizer(model_path, revision=revision)
    limit = max_tokens(model_path, revision=revision)
    for title in scripts:
        _check_length(tokenizer, title, turns[title], max_new_tokens, limit)
    facts = model_metadata(
        tokenizer,
        name=name,
        path=model_path,
        revision=revision,
        fingerprint=model_fingerprint(model_path, revision=revision),
        dtype=dtype,
        chat_template_kwargs=chat_template_kwargs,
    )
    intervention, inputs = _intervention(
        condition,
        axis_path,
        capping_config_path,
        experiment=experiment,
        away_coefficient=away_coefficient,
        target_layer_setting=target_layer_setting,
        facts=facts,
    )
    sampling: Sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    held: dict[str, Messages] = {title: [] for title in scripts}
    stats: dict[str, list[InterventionStats]] = {title: [] for title in scripts}
    n_turns = sum(map(len, turns.values()))
    with (
        Journal(journal_folder, condition) as journal,
        Progress(f"hold_conversation {condition}", n_turns, unit="turns") as progress,
    ):
        answers = _Answers(tokenizer, journal, facts, intervention, sampling, batch_size)
        for turn in range(max(map(len, turns.values()), default=0)):
            talking = [title for title in scripts if turn < len(turns[title])]
            questions = []
            for title in talking:
                held[title].append({"role": "user", "content": turns[title][turn]})
                prompt = conversation_prompt(tokenizer, held[title], **chat_template_kwargs)
                turn_seed = int(digest(seed, title, turn)[:16], 16) >> 1
                questions.append(_Question(f"{title}, turn {turn + 1}", prompt, turn_seed))
            for title, row in zip(talking, answers.to(questions), strict=True):
                held[title].append({"role": "assistant", "content": row["response"]})
                if row["stats"]:
                    stats[title].append(InterventionStats(**row["stats"]))
            progress.advance(len(talking))
    description = intervention.description if intervention else None
    metadata = stage_metadata(
        "hold_conversation",
        [*inputs, {"model": facts, "stages": {}}],
        condition=condition,
        intervention=description,
        seed=seed,
        **sampling,
    )
    for path, title in zip(conversation_paths, scripts, strict=True):
        content = {
            "model": model_path,
            "name": title,
            "domain": scripts[title].domain,
            "condition": condition,
            "intervention": description,
            "stats": asdict(InterventionStats.total(stats[title])) if stats[title] else None,
            "conversation": held[title],
            "metadata": metadata,
        }
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


class _Question(NamedTuple):
    name: str
    prompt: str
    seed: int


class _Answers:
    """Answers: from the journal, or from the model, which is loaded when first needed."""

    def __init__(
        self,
        tokenizer: Any,
        journal: Journal,
        facts: dict[str, Any],
        intervention: Intervention | None,
        sampling: Sampling,
        batch_size: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.journal = journal
        self.facts = facts
        self.intervention = intervention
        self.sampling = sampling
        self.batch_size = batch_size
        self.model: Any = None

    def to(self, questions: Sequence[_Question]) -> list[dict[str, Any]]:
        """``response`` and ``stats`` (None where nothing intervenes) for each question."""
        keys = [self._key(question) for question in questions]
        rows = self.journal.read(set(keys))
        missing = [i for i, key in enumerate(keys) if key not in rows]
        tokens = [
            self.tokenizer(questions[i].prompt, add_special_tokens=False).input_ids for i in missing
        ]
        batches = length_sorted_batches(list(map(len, tokens)), max_rows=self.batch_size)

        def answer(batch: list[int]) -> list[dict[str, Any]]:
            return self._sample([questions[missing[j]] for j in batch], [tokens[j] for j in batch])

        for batch, answers in run_halving(batches, answer):
            for j, row in zip(batch, answers, strict=True):
                self.journal.append(keys[missing[j]], row)
                rows[keys[missing[j]]] = row
        return [rows[key] for key in keys]

    def _key(self, question: _Question) -> str:
        return digest(
            RECIPE["hold_conversation"],
            self.facts["fingerprint"],
            self.facts["dtype"],
            question.prompt,
            question.seed,
            self.sampling,
            self.intervention.key if self.intervention else None,
        )

    def _sample(
        self, questions: Sequence[_Question], tokens: Sequence[list[int]]
    ) -> list[dict[str, Any]]:
        if self.model is None:
            self.model, self.tokenizer = load_model(
                self.facts["path"],
                revision=self.facts["revision"],
                dtype=self.facts["dtype"],
                chat_template_kwargs=self.facts["chat_template_kwargs"],
            )
        steering = self.intervention.on(self.model) if self.intervention else None
        with steering or nullcontext():
            answers = sample_responses(
                self.model,
                self.tokenizer,
                tokens,
                seeds=[question.seed for question in questions],
                names=[question.name for question in questions],
                **self.sampling,
            )
        return [
            {
                "response": row["response"],
                "stats": asdict(steering.stats_of(i)) if steering else None,
            }
            for i, row in enumerate(answers)
        ]


def _intervention(
    condition: str,
    axis_path: str | Path | None,
    capping_config_path: str | Path | None,
    *,
    experiment: str,
    away_coefficient: float,
    target_layer_setting: str | int,
    facts: dict[str, Any],
) -> tuple[Intervention | None, list[dict[str, Any]]]:
    """What a condition does to the model, and the metadata of what it was made from."""
    if condition == "unsteered" or axis_path is None:
        return None, []
    axis, metadata = read_axis(axis_path)
    check_same_model(metadata, {"model": facts})
    layers = metadata["layers"]
    if condition == "away":
        layer = target_layer(target_layer_setting, layers, facts["n_layers"])
        return steered(axis, layers, layer, away_coefficient), [metadata]
    config = load_capping_config(str(capping_config_path), axis, layers)
    if experiment == "auto":
        experiment = recommended_experiment(config, facts["n_layers"])
    return capped(config, experiment), [metadata, config["metadata"]]


def _check_length(
    tokenizer: Any, title: str, turns: Sequence[str], max_new_tokens: int, limit: int | None
) -> None:
    """Told now, and not after an hour: whether the whole conversation can be read by the model."""
    asked = sum(len(tokenizer(turn, add_special_tokens=False).input_ids) for turn in turns)
    needed = asked + len(turns) * max_new_tokens
    if limit is not None and needed > limit:
        raise TranscriptError(
            f"conversation '{title}': up to {needed} tokens, the model reads {limit}; lower "
            "conversations.max_new_tokens or max_turns, or leave it out (conversations.include)"
        )
