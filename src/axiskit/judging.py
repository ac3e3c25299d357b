"""Scores of responses, 0 to 3: does the response play its role?

Backends are functions from responses to verdicts; ``likelihood`` (here: axiskit.likelihood) is the
one that needs nothing but the model itself. A response that cannot be judged is unscored with a
reason; no score is ever guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from axiskit.artifacts import read_table, stage_metadata, write_table
from axiskit.errors import JudgeError
from axiskit.likelihood import likelihood_ratios
from axiskit.roles import load_role

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
    """Score a shard's role responses and write scores/{shard}.parquet.

    Raises:
        JudgeError: More than ``max_unscored`` of a role is unscored.
        NonFiniteError: A likelihood is not a number; the rollout is named.
    """
    table, inputs = read_table(responses_path)
    responses = [row for row in table.to_pylist() if row["kind"] == "role"]
    neutral_prompt = load_role(default_role_path).prompts(1, display_name)[0]
    ratios = likelihood_ratios(
        responses,
        neutral_prompt=neutral_prompt,
        journal_folder=journal_folder,
        shard=shard,
        model_path=model_path,
        revision=revision,
        dtype=dtype,
        chat_template_kwargs=chat_template_kwargs,
        tokens_per_batch=tokens_per_batch,
    )
    rows = []
    for response in responses:
        row = {"rollout_id": response["rollout_id"], "role": response["role"], "judge": backend}
        ratio = ratios.get(response["rollout_id"])
        if ratio is None:
            row["reason"] = "no response tokens"
        else:
            row["score"] = likelihood_score(response["response"], ratio["ratio"], thresholds)
            row["raw"] = f"{ratio['ratio']:+.6f}"
            row["tokens_in"] = ratio["tokens_in"]
            row["tokens_out"] = 0
        rows.append(row)
    _check_unscored(rows, max_unscored)
    metadata = stage_metadata(
        "judge_responses",
        [inputs],
        backend=backend,
        thresholds=list(thresholds),
        neutral_prompt=neutral_prompt,
    )
    write_table(scores_path, pa.Table.from_pylist(rows, schema=SCORES), metadata)


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
