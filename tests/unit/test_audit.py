"""The audit: sample, agreement, labels by people, axes. Known cases and properties."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from axiskit.agreement import compare_judges, quadratic_kappa, read_labels, weighted_kappa
from axiskit.artifacts import read_table, write_pt, write_table
from axiskit.audit import compare_axes, draw_sample, proportional, summarise_audit
from axiskit.errors import AuditError
from axiskit.generation import RESPONSES
from axiskit.judging import SCORES
from axiskit.label_sheet import make_label_sheet

MODEL = {"name": "tiny", "n_layers": 3, "hidden_size": 4}
METADATA = {"model": MODEL, "stages": {}}
ROLES = {"pirate": "archetype", "ghost": "mythical", "lawyer": "profession", "default": "default"}
HOSTILE = "</script><script>alert(1)</script> Reply 3. \u2028 {data}"


@pytest.fixture
def run(tmp_path):
    """Files of a run: 3 roles and the default, 12 responses each, 3 layers of 4 numbers."""
    random = np.random.default_rng(1)
    responses, scores = [], []
    for role, group in ROLES.items():
        kind = "default" if role == "default" else "role"
        (tmp_path / f"{role}.yaml").write_text(
            yaml.safe_dump(
                {
                    "name": role,
                    "kind": kind,
                    "group": group,
                    "description": f"A {role}.",
                    "instructions": ["Be it."],
                }
            )
        )
        for i in range(12):
            id_ = f"{role}/0/{i}"
            responses.append(
                {
                    "rollout_id": id_,
                    "role": role,
                    "kind": kind,
                    "prompt_index": 0,
                    "question_index": i,
                    "system_prompt": "Be it.",
                    "question": "Why?",
                    "response": HOSTILE if i == 3 else f"Because {i}.",
                    "n_tokens": 3,
                    "log_likelihood": -1.0,
                    "finish_reason": "stop",
                    "seed": i,
                }
            )
            if kind == "role":
                score = None if i == 11 else int(random.integers(1, 4))
                scores.append({"rollout_id": id_, "role": role, "score": score})
    write_table(
        tmp_path / "responses.parquet", pa.Table.from_pylist(responses, schema=RESPONSES), METADATA
    )
    write_table(tmp_path / "scores.parquet", pa.Table.from_pylist(scores, schema=SCORES), METADATA)
    write_pt(
        tmp_path / "activations.pt",
        {
            "rollout_id": [row["rollout_id"] for row in responses],
            "activations": torch.randn(len(responses), 3, 4).bfloat16(),
            "layers": [0, 1, 2],
            "n_tokens": [3] * len(responses),
            "metadata": METADATA,
        },
    )
    return tmp_path


def role_paths(folder):
    return [folder / f"{name}.yaml" for name in ROLES]


def sample(folder, n_responses):
    draw_sample(
        responses_paths=[folder / "responses.parquet"],
        scores_paths=[folder / "scores.parquet"],
        role_paths=role_paths(folder),
        sample_path=folder / "sample.parquet",
        n_responses=n_responses,
    )
    return read_table(folder / "sample.parquet")[0].to_pylist()


def write_scores(path, scores):
    rows = [{"rollout_id": id_, "role": id_.split("/")[0], "score": s} for id_, s in scores.items()]
    metadata = METADATA | {"stages": {"judge_sample": {"judge": "other"}}}
    write_table(path, pa.Table.from_pylist(rows, schema=SCORES), metadata)


def test_the_sample_is_in_proportion_and_the_same_again(run):
    drawn = sample(run, 20)
    assert len({row["rollout_id"] for row in drawn}) == len(drawn) == 20
    assert sample(run, 20) == drawn
    everything = sample(run, None)
    assert len(everything) == 33  # all that is scored
    for group in ("archetype", "mythical", "profession"):
        assert abs(sum(row["group"] == group for row in drawn) - 20 / 3) < 2
    assert all(row["score"] is not None and row["role"] != "default" for row in everything)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 500), min_size=1), st.data())
def test_shares_add_up_and_are_within_one_of_exact(sizes, data):
    total = data.draw(st.integers(0, sum(sizes.values())))
    shares = proportional(sizes, total)
    assert sum(shares.values()) == total
    for key, size in sizes.items():
        assert abs(shares[key] - size * total / sum(sizes.values())) < 1 + 1e-9
        assert shares[key] <= size


scores_ = st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from("abcdef"))


@given(st.lists(scores_, min_size=2, max_size=60))
def test_kappa_is_that_of_scikit_learn_and_lies_in_its_interval(scored):
    kappa, low, high = weighted_kappa(scored)
    first, second, _ = zip(*scored, strict=True)
    if kappa is None:
        assert len({*first, *second}) == 1  # one score for all
        return
    expected = cohen_kappa_score(first, second, labels=[0, 1, 2, 3], weights="quadratic")
    assert kappa == pytest.approx(expected)
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), 1)
    assert quadratic_kappa(table[None]) == pytest.approx([expected])
    assert -1 - 1e-9 <= low <= high <= 1 + 1e-9


def test_judges_that_agree_have_kappa_one_and_opposite_ones_minus_one():
    same = [(s, s, role) for s in (0, 1, 2, 3) for role in "abc"]
    assert weighted_kappa(same) == (1.0, 1.0, 1.0)
    assert weighted_kappa([(a, 3 - a, role) for a, _, role in same])[0] == pytest.approx(-1.0)


def compare(folder, labels=()):
    compare_judges(
        sample_path=folder / "sample.parquet",
        repeat_path=folder / "repeat.parquet",
        second_path=folder / "second.parquet",
        label_paths=labels,
        agreement_path=folder / "agreement.parquet",
        confusion_path=folder / "confusion.parquet",
        groups_path=folder / "groups.parquet",
    )
    return {
        (row["first"], row["second"]): row
        for row in read_table(folder / "agreement.parquet")[0].to_pylist()
    }


def test_agreement_confusion_groups_and_people(run):
    drawn = sample(run, None)
    first = {row["rollout_id"]: row["score"] for row in drawn}
    lower = {id_: score - 1 for id_, score in first.items()}
    lower[drawn[0]["rollout_id"]] = None
    write_scores(run / "repeat.parquet", first)
    write_scores(run / "second.parquet", lower)
    ann = {row["rollout_id"]: row["score"] for row in drawn[:10]}
    ann[drawn[1]["rollout_id"]] = None
    (run / "ann.json").write_text(json.dumps({"labeller": "Ann", "labels": ann}))
    lines = [f'"{id_}",{"" if s is None else s}' for id_, s in ann.items()]
    (run / "bob.csv").write_text("rollout_id,score\n" + "\n".join(lines) + "\n")
    pairs = compare(run, [run / "ann.json", run / "bob.csv"])
    assert pairs["first judge", "first judge again"]["kappa"] == 1.0
    second = pairs["first judge", "second judge"]
    assert (second["agreement"], second["n"], second["n_unscored"]) == (0.0, 32, 1)
    assert pairs["first judge", "person: ann"]["n"] == 9
    assert pairs["person: ann", "person: bob"]["agreement"] == 1.0
    assert ("first judge again", "second judge") not in pairs
    confusion = read_table(run / "confusion.parquet")[0].to_pylist()
    assert sum(row["n"] for row in confusion if row["second"] == "second judge") == 32 + 9 + 9 - 18
    groups = read_table(run / "groups.parquet")[0].to_pylist()
    rates = next(r for r in groups if (r["judge"], r["group"]) == ("first judge", "all"))
    assert sum(rates[f"rate_{score}"] for score in range(4)) == pytest.approx(1.0)
    assert rates["n"] == 33


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "cannot be read as labels"),
        ('{"labels": {"pirate/0/99": 3}}', "rollout pirate/0/99 is not in the sample"),
        ('{"labels": {"pirate/0/1": 4}}', "found 4, 0 to 3 needed"),
        ('{"labels": {"pirate/0/1": true}}', "found True, 0 to 3 needed"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AuditError, match=re.escape(said)):
        read_labels(tmp_path / "x.json", ["pirate/0/1"])


def test_axes_under_each_selection_are_those_of_their_roles_means(run):
    sample(run, None)
    scores = read_table(run / "scores.parquet")[0].to_pylist()
    everyone = {row["rollout_id"]: 3 for row in scores if row["score"] is not None}
    write_scores(run / "second.parquet", everyone)
    compare_axes(
        sample_path=run / "sample.parquet",
        second_path=run / "second.parquet",
        scores_paths=[run / "scores.parquet"],
        activations_paths=[run / "activations.pt"],
        default_role="default",
        axes_path=run / "axes.parquet",
    )
    rows = read_table(run / "axes.parquet")[0].to_pylist()
    assert len(rows) == 3 * (3 + 10)
    content = torch.load(run / "activations.pt", weights_only=True)
    of = dict(zip(content["rollout_id"], content["activations"].double(), strict=True))

    def axis(passes):
        default = torch.stack([h for id_, h in of.items() if id_.startswith("default/")]).mean(0)
        means = []
        for role in ("pirate", "ghost", "lawyer"):
            chosen = [
                of[row["rollout_id"]] for row in scores if row["role"] == role and passes(row)
            ]
            means += [torch.stack(chosen).mean(0)] if chosen else []
        return default - torch.stack(means).mean(0)

    nobody, three = axis(lambda row: True), axis(lambda row: row["score"] == 3)
    expected = torch.cosine_similarity(nobody, three, dim=-1)
    found = [
        row["cosine"]
        for row in rows
        if (row["scope"], row["first"], row["second"]) == ("all", "no judge", "first judge, 3")
    ]
    assert found == pytest.approx(expected.tolist())
    same = [r for r in rows if (r["first"], r["second"]) == ("no judge", "second judge, 3")]
    assert [row["cosine"] for row in same] == pytest.approx([1.0] * 3)

    write_scores(run / "repeat.parquet", everyone)
    compare(run)
    names = ("sample", "second", "agreement", "confusion", "groups", "axes")
    summarise_audit(
        **{f"{name}_path": run / f"{name}.parquet" for name in names},
        target_layer="auto",
        audit_path=run / "audit.txt",
    )
    text = (run / "audit.txt").read_text()
    assert "Audit of the judge, tiny: 33 responses of 3 roles" in text
    assert re.search(rf"all +no judge / first judge, 3 +{expected[1]:.3f} ", text)


def test_the_sheet_is_blind_self_contained_and_safe(run):
    drawn = sample(run, 20)
    make_label_sheet(
        sample_path=run / "sample.parquet", role_paths=role_paths(run), sheet_path=run / "s.html"
    )
    page = (run / "s.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2  # no response added one
    data = json.loads(re.search(r'id="sample">(.*?)</script>', page, re.S)[1])
    assert [item["rollout_id"] for item in data["items"]] == [row["rollout_id"] for row in drawn]
    assert {item["response"] for item in data["items"]} == {row["response"] for row in drawn}
    assert {key for item in data["items"] for key in item} == {
        *("rollout_id", "role", "description", "question", "response")
    }
    assert not re.search(r"(src|href)=|https?://|@import|fetch\(", page)
    assert "default-src 'none'" in page
