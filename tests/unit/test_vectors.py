"""Role vectors from made-up scores and activations."""

import pyarrow as pa
import pytest
import torch
import yaml

from axiskit.artifacts import read_table, write_pt, write_table
from axiskit.errors import ArtifactError, VectorError
from axiskit.judging import SCORES
from axiskit.vectors import compute_role_vectors, load_role_vectors

SHARDS = {"000": {"bard": [3, 3, 1], "self": [None] * 2}, "001": {"imp": [3, 2, 2], "owl": [3, 3]}}
MODEL = {"name": "m", "fingerprint": "f", "hidden_size": 2, "n_layers": 1}


@pytest.fixture
def run(tmp_path):
    """Two shards; the activation of rollout i of a role is [i, 1]; the default is called self."""
    metadata = {"model": MODEL, "stages": {}}
    files = {"role_paths": [], "responses_paths": [], "scores_paths": [], "activations_paths": []}
    for shard, roles in SHARDS.items():
        ids = [
            (f"{role}/0/{i}", role) for role, scores in roles.items() for i in range(len(scores))
        ]
        responses = tmp_path / f"responses-{shard}.parquet"
        write_table(responses, pa.table({"role": [role for _, role in ids]}), metadata)
        scores = [
            {"rollout_id": f"{role}/0/{i}", "role": role, "score": score}
            for role, values in roles.items()
            for i, score in enumerate(values)
            if role != "self"
        ]
        scores_path = tmp_path / f"scores-{shard}.parquet"
        write_table(scores_path, pa.Table.from_pylist(scores, schema=SCORES), metadata)
        values = [[[float(name.rsplit("/", 1)[1]), 1.0]] for name, _ in ids]
        activations = {
            "rollout_id": [name for name, _ in ids],
            "activations": torch.tensor(values).bfloat16(),
            "layers": [0],
            "n_tokens": [1] * len(ids),
            "metadata": metadata,
        }
        write_pt(tmp_path / f"activations-{shard}.pt", activations)
        for role in roles:
            path = tmp_path / f"{role}.yaml"
            kind = "default" if role == "self" else "role"
            content = {"name": role, "kind": kind, "group": "g", "description": ""}
            path.write_text(yaml.safe_dump({**content, "instructions": ["x"]}))
            files["role_paths"].append(path)
        files["responses_paths"].append(responses)
        files["scores_paths"].append(scores_path)
        files["activations_paths"].append(tmp_path / f"activations-{shard}.pt")

    def compute(min_score=3, min_responses=2, min_roles=2):
        compute_role_vectors(
            **files,
            role_vectors_path=tmp_path / "role_vectors.pt",
            roles_path=tmp_path / "roles.parquet",
            min_score=min_score,
            min_responses=min_responses,
            min_roles=min_roles,
        )
        rows = read_table(tmp_path / "roles.parquet")[0].to_pylist()
        return load_role_vectors(tmp_path / "role_vectors.pt"), {row["role"]: row for row in rows}

    compute.files = files
    return compute


def test_means_over_responses_that_count_and_all_of_the_default(run):
    content, _ = run()
    assert content["roles"] == ["bard", "owl"]
    assert content["vectors"].tolist() == [[[0.5, 1.0]], [[0.5, 1.0]]]
    assert content["default"].tolist() == [[0.5, 1.0]]
    assert content["counts"] == {"bard": 2, "owl": 2, "self": 2}
    lower, _ = run(min_score=2)
    assert lower["roles"] == ["bard", "imp", "owl"]
    assert lower["vectors"][1].tolist() == [[1.0, 1.0]]


def test_a_role_left_out_is_a_row_with_the_reason(run):
    _, rows = run()
    assert set(rows) == {"bard", "imp", "owl", "self"}
    assert not rows["imp"]["used"]
    assert rows["imp"]["reason"] == (
        "1 responses scored 3 or more, 2 needed (vectors.min_responses)"
    )
    assert [rows["imp"][f"n_score_{i}"] for i in range(4)] == [0, 0, 2, 1]
    assert rows["bard"]["reason"] is None
    assert rows["self"]["kind"] == "default"


def test_too_few_roles_is_an_error_that_names_them(run):
    with pytest.raises(VectorError, match=r"2 roles .* 3 needed \(vectors\.min_roles\).*imp: 1"):
        run(min_roles=3)


def test_shards_of_two_models_are_refused(run, tmp_path):
    path = run.files["activations_paths"][1]
    content = torch.load(path, weights_only=True)
    content["metadata"]["model"]["fingerprint"] = "another"
    write_pt(path, content)
    with pytest.raises(ArtifactError, match="fingerprint is 'f' in one and 'another'"):
        run()
