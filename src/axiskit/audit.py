"""How far a judge can be trusted: on a sample, a second judge, the first again, and people.

And what matters in the end: how much the axis depends on who judged, and on the threshold.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from axiskit.agreement import FIRST, LABELS, SECOND
from axiskit.artifacts import read_table, stage_metadata, write_table, write_text
from axiskit.asking import hosted_judge
from axiskit.errors import AuditError
from axiskit.judging import SCORES, asked_rows, likelihood_rows
from axiskit.roles import load_role
from axiskit.rollouts import digest

if TYPE_CHECKING:
    import torch

SAMPLE = pa.schema(
    [
        ("rollout_id", pa.string()),
        ("role", pa.string()),
        ("group", pa.string()),
        ("system_prompt", pa.string()),
        ("question", pa.string()),
        ("response", pa.string()),
        ("n_tokens", pa.int32()),
        ("log_likelihood", pa.float64()),
        ("score", pa.int8()),
    ]
)
"""Columns of audit/sample.parquet: scored role responses, in no telling order."""

AXES = pa.schema(
    [
        ("scope", pa.string()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("n_roles_first", pa.int32()),
        ("n_roles_second", pa.int32()),
        ("layer", pa.int32()),
        ("cosine", pa.float64()),
    ]
)
"""Columns of audit/axes.parquet: cosine of the axes under two selections, by layer."""


def draw_sample(
    *,
    responses_paths: Sequence[str | Path],
    scores_paths: Sequence[str | Path],
    role_paths: Iterable[str | Path],
    sample_path: str | Path,
    n_responses: int | None,
) -> None:
    """Write a sample of the scored responses, in proportion to each group and score.

    The same responses whatever the order of shards: a stratum's first by a hash of their id.

    Raises:
        AuditError: Nothing is scored.
    """
    groups = {role.name: role.group for role in map(load_role, role_paths)}
    rows, metadatas = [], []
    for responses_path, scores_path in zip(responses_paths, scores_paths, strict=True):
        scores, metadata = read_table(scores_path, ["rollout_id", "score"])
        metadatas.append(metadata)
        by_id = {row["rollout_id"]: row["score"] for row in scores.to_pylist()}
        for row in read_table(responses_path)[0].to_pylist():
            score = by_id.get(row["rollout_id"])
            if score is not None:
                rows.append({**row, "score": score, "group": groups[row["role"]]})
    if not rows:
        raise AuditError("audit: no response has a score, some needed; run the workflow first")
    strata: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: digest("audit", row["rollout_id"])):
        strata[row["group"], row["score"]].append(row)
    wanted = min(n_responses or len(rows), len(rows))
    counts = proportional({key: len(members) for key, members in strata.items()}, wanted)
    drawn = [row for key, members in strata.items() for row in members[: counts[key]]]
    drawn.sort(key=lambda row: digest("order", row["rollout_id"]))
    metadata = stage_metadata("draw_sample", metadatas, n_responses=n_responses)
    write_table(sample_path, pa.Table.from_pylist(drawn, schema=SAMPLE), metadata)


def proportional(sizes: Mapping[Any, int], total: int) -> dict[Any, int]:
    """Share ``total`` among strata in proportion to their sizes, by largest remainder.

    >>> proportional({"a": 70, "b": 20, "c": 10}, 9)
    {'a': 6, 'b': 2, 'c': 1}
    """
    exact = {key: size * total / sum(sizes.values()) for key, size in sizes.items()}
    shares = {key: int(share) for key, share in exact.items()}
    by_remainder = sorted(exact, key=lambda key: (shares[key] - exact[key], str(key)))
    for key in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def judge_sample(
    *,
    sample_path: str | Path,
    role_paths: Iterable[str | Path],
    default_role_path: str | Path,
    scores_path: str | Path,
    journal_folder: str | Path,
    judge_name: str,
    judge: Mapping[str, Any],
    display_name: str,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
    tokens_per_batch: int,
) -> None:
    """Score the sample: by the second judge, or by the first once more.

    A hosted judge is asked anew for the repetition. By likelihood all is computed anew.

    Args:
        journal_folder: The run's journals.
        judge_name: ``second``, or ``repeat``: the first judge again.
        judge: Its section of the config.
    """
    table, inputs = read_table(sample_path)
    sample = table.to_pylist()
    if judge["backend"] == "likelihood":
        rows = likelihood_rows(
            sample,
            judge["thresholds"],
            neutral_prompt=load_role(default_role_path).prompts(1, display_name)[0],
            journal_folder=Path(journal_folder) / "judge_sample",
            shard=judge_name,
            model_path=model_path,
            revision=revision,
            dtype=dtype,
            chat_template_kwargs=chat_template_kwargs,
            tokens_per_batch=tokens_per_batch,
        )
    else:
        rows = asked_rows(
            sample,
            {role.name: role for role in map(load_role, role_paths)},
            hosted_judge(judge),
            journal_folder=Path(journal_folder) / "ask_judge",
            owner=f"audit-{judge_name}",
            repeat=int(judge_name == "repeat"),
        )
    metadata = stage_metadata("judge_sample", [inputs], judge=judge["model"] or judge["backend"])
    write_table(scores_path, pa.Table.from_pylist(rows, schema=SCORES), metadata)


def compare_axes(
    *,
    sample_path: str | Path,
    second_path: str | Path,
    scores_paths: Sequence[str | Path],
    activations_paths: Sequence[str | Path],
    default_role: str,
    axes_path: str | Path,
) -> None:
    """Write the cosine between the axes under each judge and threshold, at every layer.

    Two scopes: all responses (the first judge scored all), and the sample, on which both judges are
    compared on the same responses. ``no judge`` takes every response. A role counts in an axis
    with one response or more that passes; ``vectors.min_responses`` is not applied.
    """
    metadatas = []
    first: dict[str, int | None] = {}
    for path in scores_paths:
        table, metadata = read_table(path, ["rollout_id", "score"])
        metadatas.append(metadata)
        first.update({row["rollout_id"]: row["score"] for row in table.to_pylist()})
    sampled = read_table(sample_path, ["rollout_id"])[0].column("rollout_id").to_pylist()
    scores = read_table(second_path, ["rollout_id", "score"])[0].to_pylist()
    second = {row["rollout_id"]: row["score"] for row in scores}
    selections = {
        ("all", "no judge"): list(first),
        ("all", f"{FIRST}, 3"): _scored(first, 3),
        ("all", f"{FIRST}, 2 and 3"): _scored(first, 2),
        ("sample", "no judge"): sampled,
        ("sample", f"{FIRST}, 3"): _scored({id_: first[id_] for id_ in sampled}, 3),
        ("sample", f"{FIRST}, 2 and 3"): _scored({id_: first[id_] for id_ in sampled}, 2),
        ("sample", f"{SECOND}, 3"): _scored(second, 3),
        ("sample", f"{SECOND}, 2 and 3"): _scored(second, 2),
    }
    axes, n_roles, layers = _axes(activations_paths, selections, default_role)
    rows = []
    for one, other in itertools.combinations(axes, 2):
        if one[0] != other[0]:
            continue
        dot = (axes[one] * axes[other]).sum(dim=-1)
        cosines = dot / (axes[one].norm(dim=-1) * axes[other].norm(dim=-1))
        rows += [
            {
                "scope": one[0],
                "first": one[1],
                "second": other[1],
                "n_roles_first": n_roles[one],
                "n_roles_second": n_roles[other],
                "layer": layer,
                "cosine": float(cosine),
            }
            for layer, cosine in zip(layers, cosines, strict=True)
        ]
    metadata = stage_metadata("compare_axes", metadatas)
    write_table(axes_path, pa.Table.from_pylist(rows, schema=AXES), metadata)


def _scored(scores: Mapping[str, int | None], lowest: int) -> list[str]:
    return [id_ for id_, score in scores.items() if score is not None and score >= lowest]


def _axes(
    activations_paths: Sequence[str | Path],
    selections: Mapping[tuple[str, str], Sequence[str]],
    default_role: str,
) -> tuple[dict[tuple[str, str], torch.Tensor], dict[tuple[str, str], int], list[int]]:
    """The axis of each selection of rollouts, [layer, hidden] float64; empty ones are left out.

    An axis is a weighted sum of activations, with weights known beforehand: so one pass over the
    shards and one sum a selection, however many roles there are.
    """
    import torch

    from axiskit.artifacts import load_activations

    shards = [load_activations(path) for path in activations_paths]  # memory-mapped
    present = {id_ for shard in shards for id_ in shard["rollout_id"]}
    defaults = [id_ for id_ in present if id_.split("/")[0] == default_role]
    weights: dict[tuple[str, str], dict[str, float]] = {}
    n_roles = {}
    for name, ids in selections.items():
        counts = Counter(id_.split("/")[0] for id_ in ids if id_ in present)
        if counts:
            n_roles[name] = len(counts)
            weights[name] = {
                id_: -1 / (len(counts) * counts[id_.split("/")[0]]) for id_ in ids if id_ in present
            } | dict.fromkeys(defaults, 1 / len(defaults))
    layers = shards[0]["layers"]
    axes = {
        name: torch.zeros(shards[0]["activations"].shape[1:], dtype=torch.float64)
        for name in weights
    }
    for shard in shards:
        for start in range(0, len(shard["rollout_id"]), 64):  # a shard can be larger than memory
            ids = shard["rollout_id"][start : start + 64]
            activations = shard["activations"][start : start + 64].double()
            for name, of in weights.items():
                row = torch.tensor([of.get(id_, 0.0) for id_ in ids], dtype=torch.float64)
                axes[name] += torch.einsum("r,rlh->lh", row, activations)
    return axes, n_roles, layers


def summarise_audit(
    *,
    sample_path: str | Path,
    second_path: str | Path,
    agreement_path: str | Path,
    confusion_path: str | Path,
    groups_path: str | Path,
    axes_path: str | Path,
    target_layer: int | str,
    audit_path: str | Path,
) -> None:
    """Write audit.txt: what the audit's tables say, on one page."""
    sample, metadata = read_table(sample_path, ["role"])
    judge = metadata["stages"].get("ask_judge", {}).get("model", "likelihood")
    second = read_table(second_path)[1]["stages"]["judge_sample"]["judge"]
    n_layers = metadata["model"]["n_layers"]
    target = n_layers // 2 if target_layer == "auto" else int(target_layer)
    lines = [
        f"Audit of the judge, {metadata['model']['name']}: {sample.num_rows} responses of "
        f"{len(set(sample.column('role').to_pylist()))} roles",
        f"  {FIRST}: {judge}; {SECOND}: {second}",
        "",
        "Agreement (kappa with quadratic weights; 95 % interval, roles drawn anew)",
    ]
    for row in read_table(agreement_path)[0].to_pylist():
        pair = f"{row['first']} / {row['second']}"
        kappa = (
            "kappa not defined: one score for all"
            if row["kappa"] is None
            else f"kappa {row['kappa']:5.2f} [{row['kappa_low']:.2f}, {row['kappa_high']:.2f}]"
        )
        same = "    -" if row["agreement"] is None else f"{row['agreement']:5.0%}"
        unscored = f", {row['n_unscored']} unscored by one" if row["n_unscored"] else ""
        lines.append(f"  {pair:<40} {same} of {row['n']:>4} the same, {kappa}{unscored}")
    lines += ["", f"Scores by {FIRST} (down) and {SECOND} (across)"]
    cells = {
        (row["score_first"], row["score_second"]): row["n"]
        for row in read_table(confusion_path)[0].to_pylist()
        if (row["first"], row["second"]) == (FIRST, SECOND)
    }
    lines.append("       " + "".join(f"{score:>6}" for score in LABELS))
    lines += [f"  {a:>5}" + "".join(f"{cells[a, b]:>6}" for b in LABELS) for a in LABELS]
    lines += ["", "Share that scores 3, by group of roles"]
    groups = read_table(groups_path)[0].to_pylist()
    judges = list(dict.fromkeys(row["judge"] for row in groups))
    lines.append(" " * 18 + "".join(f"{name:>20}" for name in judges))
    for group in dict.fromkeys(row["group"] for row in groups):
        rates = {row["judge"]: row["rate_3"] for row in groups if row["group"] == group}
        shares = ("-" if rates[name] is None else f"{rates[name]:.0%}" for name in judges)
        lines.append(f"  {group:<16}" + "".join(f"{share:>20}" for share in shares))
    lines += ["", f"Cosine between axes, at layer {target} (lowest of all layers)"]
    pairs: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in read_table(axes_path)[0].to_pylist():
        pairs[row["scope"], row["first"], row["second"]].append(row)
    for (scope, one, other), rows in pairs.items():
        at = next((row["cosine"] for row in rows if row["layer"] == target), float("nan"))
        lines.append(
            f"  {scope:<7} {one + ' / ' + other:<46} {at:6.3f} "
            f"({min(row['cosine'] for row in rows):.3f}); {rows[0]['n_roles_first']} and "
            f"{rows[0]['n_roles_second']} roles"
        )
    write_text(audit_path, "\n".join(lines) + "\n")
