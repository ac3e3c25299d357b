"""Scores of responses, 0 to 3: does the response play its role?

Of a trait's poles the judge by likelihood says the same, 0 to 3; one that reads says how strongly
the trait shows, 0 to 100.

The backend ``likelihood`` needs nothing but the model itself (axiskit.likelihood); ``anthropic``
and ``anthropic-batch`` ask a judge that reads the text (axiskit.asking, axiskit.judge_prompts). A
response that cannot be judged is unscored with a reason; no score is ever guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from axiskit.artifacts import read_table, stage_metadata, write_table
from axiskit.asking import HostedJudge, Question, ask, hosted_judge
from axiskit.errors import JudgeError
from axiskit.judge_prompts import judge_prompt, parse_role_score, parse_trait_score
from axiskit.roles import Role, load_role
from axiskit.traits import load_characters

SCORES = pa.schema(
    [
        ("rollout_id", pa.string()),
        ("role", pa.string()),
        ("score", pa.int8()),
        ("reason", pa.string()),
        ("raw", pa.string()),
        ("judge", pa.string()),
        ("tokens_in", pa.int32()),
        ("tokens_out", pa.int32()),
    ]
)
"""Columns of scores/{shard}.parquet; score or reason is null. Default rollouts have no row."""

NO_TOKENS = "no response tokens"

REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^(i'?m|i am) (really |very |so )?sorry,? (but )?(i|as)\b",
        r"^(sorry|apologies),? (but )?i (can'?t|cannot|can not|won'?t|am unable|'m unable)\b",
        r"^(unfortunately,? )?i (can'?t|cannot|can not|am unable to|'m unable to|am not able to|"
        r"'m not able to|won'?t) (help|assist|answer|do that|comply|fulfil|pretend|play|provide|"
        r"roleplay|role-play|continue)\b",
        r"^as an? (ai|artificial intelligence|language model|large language model)\b",
        r"^(i'?m|i am) (just |only )?an? (ai|artificial intelligence|language model|"
        r"large language model)\b",
    )
)
"""How a plain refusal starts. A documented list, not a reading: it misses unusual refusals."""


def is_plain_refusal(response: str) -> bool:
    """Whether a response opens with one of :data:`REFUSALS`.

    >>> is_plain_refusal("I'm sorry, but I can't pretend to be a pirate.")
    True
    >>> is_plain_refusal("Sorry, matey, the rum be gone.")
    False
    """
    start = response.strip().replace("\u2019", "'")
    return any(pattern.search(start) for pattern in REFUSALS)


def likelihood_score(response: str, ratio: float, thresholds: Sequence[float]) -> int:
    """Score from the ratio: 0 a plain refusal, 1 below both thresholds, 2 between, 3 above both.

    Args:
        response: The response's text, for the refusal patterns.
        ratio: Mean log-likelihood ratio, nats per token (see axiskit.likelihood).
        thresholds: From which ratio a response scores 2, and 3.
    """
    if is_plain_refusal(response):
        return 0
    return 1 + sum(ratio >= threshold for threshold in thresholds)


def judge_responses(
    *,
    responses_path: str | Path,
    default_role_path: str | Path,
    scores_path: str | Path,
    journal_folder: str | Path,
    shard: str,
    display_name: str,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
    backend: str,
    thresholds: Sequence[float],
    max_unscored: float,
    tokens_per_batch: int,
) -> None:
    """Score a shard's responses (all but the default's) and write scores/{shard}.parquet.

    Raises:
        JudgeError: More than ``max_unscored`` of a role is unscored.
        NonFiniteError: A likelihood is not a number; the rollout is named.
    """
    responses, inputs = _judged_responses(responses_path)
    neutral_prompt = load_role(default_role_path).prompts(1, display_name)[0]
    rows = likelihood_rows(
        responses,
        thresholds,
        neutral_prompt=neutral_prompt,
        journal_folder=journal_folder,
        shard=shard,
        model_path=model_path,
        revision=revision,
        dtype=dtype,
        chat_template_kwargs=chat_template_kwargs,
        tokens_per_batch=tokens_per_batch,
    )
    _check_unscored(rows, max_unscored)
    metadata = stage_metadata(
        "judge_responses",
        [inputs],
        backend=backend,
        thresholds=list(thresholds),
        neutral_prompt=neutral_prompt,
    )
    write_table(scores_path, pa.Table.from_pylist(rows, schema=SCORES), metadata)


def ask_judge(
    *,
    responses_path: str | Path,
    role_paths: Iterable[str | Path],
    scores_path: str | Path,
    journal_folder: str | Path,
    shard: str,
    model: str,
    base_url: str | None,
    extra_body: Mapping[str, Any],
    max_tokens: int,
    max_unscored: float,
    limits: Mapping[str, Any],
) -> None:
    """Have a shard's responses read by a hosted judge and write scores/{shard}.parquet.

    Neither the model under study nor torch is loaded.

    Args:
        role_paths: Files of the shard's roles or traits: description, or a role's own judge prompt.
        limits: The other keys of ``judge``: what changes no score (rates, prices, budget ...).

    Raises:
        JudgeError: More than ``max_unscored`` of a role is unscored.
        AccountError, BudgetError, ServerError, InterruptError: See :func:`axiskit.asking.ask`.
    """
    settings = {
        "model": model,
        "base_url": base_url,
        "extra_body": dict(extra_body),
        "max_tokens": max_tokens,
    }
    responses, inputs = _judged_responses(responses_path)
    rows = asked_rows(
        responses,
        {character.name: character for character in load_characters(role_paths)},
        hosted_judge({**limits, **settings}),
        journal_folder=journal_folder,
        owner=shard,
    )
    _check_unscored(rows, max_unscored)
    metadata = stage_metadata("ask_judge", [inputs], **settings)
    write_table(scores_path, pa.Table.from_pylist(rows, schema=SCORES), metadata)


def likelihood_rows(
    responses: Sequence[dict[str, Any]], thresholds: Sequence[float], **settings: Any
) -> list[dict[str, Any]]:
    """Rows of a score table by likelihood ratio.

    Args:
        responses: Rows of responses/{shard}.parquet.
        thresholds: See :func:`likelihood_score`.
        settings: Passed to :func:`axiskit.likelihood.likelihood_ratios`.
    """
    from axiskit.likelihood import likelihood_ratios

    ratios = likelihood_ratios(responses, **settings)
    rows = []
    for response in responses:
        row = {
            "rollout_id": response["rollout_id"],
            "role": response["role"],
            "judge": "likelihood",
        }
        ratio = ratios.get(response["rollout_id"])
        if ratio is None:
            row["reason"] = NO_TOKENS
        else:
            row["score"] = likelihood_score(response["response"], ratio["ratio"], thresholds)
            row["raw"] = f"{ratio['ratio']:+.6f}"
            row["tokens_in"] = ratio["tokens_in"]
            row["tokens_out"] = 0
        rows.append(row)
    return rows


def asked_rows(
    responses: Sequence[dict[str, Any]],
    roles: Mapping[str, Role],
    judge: HostedJudge,
    *,
    journal_folder: str | Path,
    owner: str,
    repeat: int = 0,
) -> list[dict[str, Any]]:
    """Rows of a score table by a hosted judge.

    Args:
        responses: Rows of responses/{shard}.parquet.
        roles: At least those of the responses.
        repeat: Ask anew, for the so many-th time, what was answered before.
    """
    questions = {
        row["rollout_id"]: Question(
            judge_prompt(roles[row["role"]], question=row["question"], response=row["response"]),
            parse_trait_score if roles[row["role"]].kind == "trait" else parse_role_score,
            repeat,
        )
        for row in responses
        if row["response"].strip()  # nothing to read, nothing to pay
    }
    answers = ask(
        questions, judge, journal_folder=journal_folder, owner=owner, what=f"ask_judge {owner}"
    )
    rows = []
    for row in responses:
        answer = answers.get(row["rollout_id"])
        rows.append(
            {
                "rollout_id": row["rollout_id"],
                "role": row["role"],
                "score": answer.value if answer else None,
                "reason": answer.reason if answer else NO_TOKENS,
                "raw": answer.raw if answer else None,
                "judge": judge.model,
                "tokens_in": answer.tokens_in if answer else None,
                "tokens_out": answer.tokens_out if answer else None,
            }
        )
    return rows


def _judged_responses(path: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    table, metadata = read_table(path)
    return [row for row in table.to_pylist() if row["kind"] != "default"], metadata


def _check_unscored(rows: Sequence[dict[str, Any]], max_unscored: float) -> None:
    totals = Counter(row["role"] for row in rows)
    unscored = Counter(row["role"] for row in rows if row.get("score") is None)
    for role, count in sorted(unscored.items()):
        if count > max_unscored * totals[role]:
            reasons = Counter(
                row["reason"] for row in rows if row["role"] == role and row.get("score") is None
            )
            raise JudgeError(
                f"role '{role}': {count} of {totals[role]} responses are unscored "
                f"({', '.join(f'{n} {reason}' for reason, n in reasons.most_common())}), at most "
                f"{max_unscored:.0%} allowed (judge.max_unscored); look at them, or raise it"
            )
