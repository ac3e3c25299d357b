"""How far judges and people agree on a sample: agreement, kappa, confusion, rates by group."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from axiskit.artifacts import read_table, stage_metadata, write_table
from axiskit.errors import AuditError

N_BOOTSTRAP = 1000
FIRST, AGAIN, SECOND = "first judge", "first judge again", "second judge"
LABELS = range(4)
"""The scores that a judge can give."""

AGREEMENT = pa.schema(
    [
        ("first", pa.string()),
        ("second", pa.string()),
        ("n", pa.int32()),
        ("n_unscored", pa.int32()),
        ("agreement", pa.float64()),
        ("kappa", pa.float64()),
        ("kappa_low", pa.float64()),
        ("kappa_high", pa.float64()),
    ]
)
"""Columns of audit/agreement.parquet: one row a pair of judges."""

CONFUSION = pa.schema(
    [
        ("first", pa.string()),
        ("second", pa.string()),
        ("score_first", pa.int8()),
        ("score_second", pa.int8()),
        ("n", pa.int32()),
    ]
)
"""Columns of audit/confusion.parquet: one row a pair of judges and of scores."""

GROUPS = pa.schema(
    [
        ("judge", pa.string()),
        ("group", pa.string()),
        ("n", pa.int32()),
        ("n_unscored", pa.int32()),
        *((f"rate_{score}", pa.float64()) for score in LABELS),
    ]
)
"""Columns of audit/groups.parquet: share of each score, by judge and group of roles."""


def read_labels(path: str | Path, rollout_ids: Sequence[str]) -> dict[str, int | None]:
    """Read labels that the sheet exported, JSON or CSV; None: the person could not tell.

    Raises:
        AuditError: It is no such file, a score is not 0 to 3, or a rollout is not of the sample.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if Path(path).suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
            labels = {
                row["rollout_id"]: int(row["score"]) if row["score"] else None for row in rows
            }
        else:
            labels = dict(json.loads(text)["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuditError(
            f"{path}: cannot be read as labels (audit.labels): {error!r}; export it from "
            "audit/sheet.html"
        ) from None
    for rollout_id, score in labels.items():
        if rollout_id not in set(rollout_ids):
            raise AuditError(
                f"{path}: rollout {rollout_id} is not in the sample, labels of this sample needed "
                "(audit.labels); was audit.n_responses changed since?"
            )
        if score is not None and (isinstance(score, bool) or score not in LABELS):
            raise AuditError(f"{path}: rollout {rollout_id}: found {score!r}, 0 to 3 needed")
    return labels


def compare_judges(
    *,
    sample_path: str | Path,
    repeat_path: str | Path,
    second_path: str | Path,
    label_paths: Sequence[str | Path],
    agreement_path: str | Path,
    confusion_path: str | Path,
    groups_path: str | Path,
) -> None:
    """Write agreement, confusion and rates by group for every pair of judges, people included.

    Raises:
        AuditError: A label file does not fit.
    """
    table, inputs = read_table(sample_path)
    sample = table.to_pylist()
    judges = {FIRST: {row["rollout_id"]: row["score"] for row in sample}}
    for name, path in ((AGAIN, repeat_path), (SECOND, second_path)):
        scores = read_table(path, ["rollout_id", "score"])[0].to_pylist()
        judges[name] = {row["rollout_id"]: row["score"] for row in scores}
    for path in label_paths:
        judges[f"person: {Path(path).stem}"] = read_labels(path, list(judges[FIRST]))
    agreement, confusion = [], []
    for first, second in itertools.combinations(judges, 2):
        if AGAIN in (first, second) and (first, second) != (FIRST, AGAIN):
            continue  # the repetition says how steady the first judge is, and no more
        pair = {"first": first, "second": second}
        both = [
            (judges[first][row["rollout_id"]], judges[second][row["rollout_id"]], row["role"])
            for row in sample
            if row["rollout_id"] in judges[first] and row["rollout_id"] in judges[second]
        ]
        scored = [(a, b, role) for a, b, role in both if a is not None and b is not None]
        agreement.append(pair | _agreement(scored) | {"n_unscored": len(both) - len(scored)})
        cells = Counter((a, b) for a, b, _ in scored)
        confusion += [
            pair | {"score_first": a, "score_second": b, "n": cells[a, b]}
            for a, b in itertools.product(LABELS, LABELS)
        ]
    groups = [
        {"judge": name, "group": group}
        | _rates(
            [
                scores_of[row["rollout_id"]]
                for row in sample
                if row["rollout_id"] in scores_of and group in ("all", row["group"])
            ]
        )
        for name, scores_of in judges.items()
        for group in ["all", *sorted({row["group"] for row in sample})]
    ]
    metadata = stage_metadata(
        "compare_judges", [inputs], labels=[Path(path).name for path in label_paths]
    )
    write_table(agreement_path, pa.Table.from_pylist(agreement, schema=AGREEMENT), metadata)
    write_table(confusion_path, pa.Table.from_pylist(confusion, schema=CONFUSION), metadata)
    write_table(groups_path, pa.Table.from_pylist(groups, schema=GROUPS), metadata)


def _agreement(scored: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    kappa, low, high = weighted_kappa(scored)
    same = sum(a == b for a, b, _ in scored) / len(scored) if scored else None
    return {
        "n": len(scored),
        "agreement": same,
        "kappa": kappa,
        "kappa_low": low,
        "kappa_high": high,
    }


def _rates(scores: Sequence[int | None]) -> dict[str, Any]:
    given = Counter(scores)
    n_scored = len(scores) - given[None]
    rates = {f"rate_{s}": given[s] / n_scored if n_scored else None for s in LABELS}
    return {"n": len(scores), "n_unscored": given[None], **rates}


def weighted_kappa(
    scored: Sequence[tuple[int, int, str]],
) -> tuple[float | None, float | None, float | None]:
    """Cohen's kappa with quadratic weights, and its 95 % bootstrap interval over roles.

    Roles are drawn, not responses: those of one role resemble each other. None where kappa is not
    defined (both judges give one and the same score to all).

    Args:
        scored: Score by the first judge, by the second, role.
    """
    from sklearn.metrics import cohen_kappa_score

    if not scored or len({score for first, second, _ in scored for score in (first, second)}) == 1:
        return None, None, None
    first, second, roles = zip(*scored, strict=True)
    kappa = cohen_kappa_score(first, second, labels=[*LABELS], weights="quadratic")
    names, index = np.unique(roles, return_inverse=True)
    tables = np.zeros((len(names), 4, 4))
    np.add.at(tables, (index, first, second), 1)
    random = np.random.default_rng(0)
    times_drawn = random.multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=N_BOOTSTRAP
    )
    kappas = quadratic_kappa(np.einsum("br,rij->bij", times_drawn, tables))
    low, high = np.nanquantile(kappas, [0.025, 0.975])
    return float(kappa), float(low), float(high)


def quadratic_kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights of many confusion tables [..., 4, 4] at once.

    ``1 - sum(w * observed) / sum(w * expected)`` with w = (i - j)^2; NaN where both judges give one
    and the same score to all.
    """
    weights = np.subtract.outer(np.arange(4), np.arange(4)) ** 2
    totals = tables.sum(axis=(-2, -1))
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    expected_cost = (weights * expected).sum(axis=(-2, -1))
    kappas = np.full(totals.shape, np.nan)
    cost = totals * (weights * tables).sum(axis=(-2, -1))
    np.divide(cost, expected_cost, out=kappas, where=expected_cost > 0)
    return 1 - kappas
