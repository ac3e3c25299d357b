"""Trait files, and trait vectors from made-up scores and activations."""

import pyarrow as pa
import pytest
import torch
import yaml

from axiskit.artifacts import read_table, write_pt, write_table
from axiskit.axis import save_axis
from axiskit.errors import RoleError, VectorError
from axiskit.judging import SCORES
from axiskit.roles import load_role
from axiskit.traits import (
    compute_trait_vectors,
    find_trait_files,
    load_characters,
    load_trait,
    load_trait_vectors,
    rank_traits,
)

METADATA = {
    "model": {"name": "m", "fingerprint": "f", "hidden_size": 2, "n_layers": 2},
    "stages": {},
}
BOLD = {
    "name": "bold",
    "kind": "trait",
    "description": "Dares.",
    "instructions": [{"positive": "Dare.", "negative": "Shrink."}],
}
MEEK = BOLD | {"name": "meek", "instructions": [{"positive": "Bow.", "negative": "Stand."}]}


def write(folder, *traits):
    folder.mkdir(exist_ok=True)
    for trait in traits:
        (folder / f"{trait['name']}.yaml").write_text(yaml.safe_dump(trait))
    return folder


def test_a_trait_has_two_poles_that_are_asked_like_roles(tmp_path):
    path = write(tmp_path, BOLD) / "bold.yaml"
    positive, negative = load_trait(path).poles()
    assert [positive.name, negative.name] == ["bold+", "bold-"]
    assert [positive.kind, positive.trait, positive.description] == ["trait", "bold", "Dares."]
    assert positive.prompts(1, "Tiny") == ["Dare."]
    assert negative.prompts(1, "Tiny") == ["Shrink."]
    role = tmp_path / "imp.yaml"
    role.write_text("name: imp\nkind: role\ngroup: g\ndescription: ''\ninstructions: [a]\n")
    assert [c.name for c in load_characters([path, role])] == ["bold+", "bold-", "imp"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "cold"}, "bold.yaml: name: found 'cold'"),
        ({"group": "g"}, "bold.yaml: group: Extra inputs"),
        ({"description": " "}, "bold.yaml: description"),
        ({"instructions": []}, "bold.yaml: instructions"),
        ({"instructions": [{"positive": "a"}]}, r"bold.yaml: instructions\.0\.negative"),
        ({"instructions": [{"positive": "a", "negative": "a"}] * 2}, "two are the same"),
        ({}, r"1 pairs of instructions, 2 needed \(prompts_per_role\)"),
    ],
)
def test_a_bad_trait_file_is_told_by_file_and_key(tmp_path, change, said):
    path = tmp_path / "bold.yaml"
    path.write_text(yaml.safe_dump(BOLD | change))
    with pytest.raises(RoleError, match=said):
        load_trait(path, n_pairs=2)


def test_which_traits_are_included(tmp_path):
    folder = write(tmp_path / "traits", BOLD, MEEK)
    assert list(find_trait_files(folder, "all")) == ["bold", "meek"]
    assert list(find_trait_files(folder, ["meek"])) == ["meek"]
    assert find_trait_files(tmp_path / "none", []) == {}
    with pytest.raises(RoleError, match=r"'mek' \(traits.include\); did you mean 'meek'"):
        find_trait_files(folder, ["mek"])
    with pytest.raises(RoleError, match=r"no such folder \(traits.dir\)"):
        find_trait_files(tmp_path / "none", "all")


def test_a_trait_among_the_roles_is_refused(tmp_path):
    write(tmp_path, BOLD)
    with pytest.raises(RoleError, match="kind: found 'trait', role or default needed"):
        load_role(tmp_path / "bold.yaml")


@pytest.fixture
def run(tmp_path):
    """Two traits; rollout i of bold has activation [[i, 0], [0, i]], of meek the same times -1."""
    folder = write(tmp_path / "traits", BOLD, MEEK)
    scores = {
        "bold+": [90, 60, 10],
        "bold-": [0, 40, 70],
        "meek+": [None, 55, 90],
        "meek-": [50, 90, 49],
    }
    rows = [
        {"rollout_id": f"{name}/0/{i}", "role": name, "score": score}
        for name, values in scores.items()
        for i, score in enumerate(values)
    ]
    write_table(tmp_path / "s.parquet", pa.Table.from_pylist(rows, schema=SCORES), METADATA)
    values = []
    for row in rows:
        i = float(row["rollout_id"][-1]) + (10 if "+" in row["role"] else 0)
        values.append(torch.tensor([[i, 0], [0, i]]) * (1 if "bold" in row["role"] else -1))
    activations = {
        "rollout_id": [row["rollout_id"] for row in rows],
        "activations": torch.stack(values).bfloat16(),
        "layers": [0, 1],
        "n_tokens": [1] * len(rows),
        "metadata": METADATA,
    }
    write_pt(tmp_path / "a.pt", activations)

    def compute(**settings):
        compute_trait_vectors(
            trait_paths=[folder / "bold.yaml", folder / "meek.yaml"],
            scores_paths=[tmp_path / "s.parquet"],
            activations_paths=[tmp_path / "a.pt"],
            trait_vectors_path=tmp_path / "v.pt",
            **{"judge_reads": True, "min_score": 50, "min_responses": 1, **settings},
        )
        return load_trait_vectors(tmp_path / "v.pt")

    return compute


def test_where_a_judge_reads_each_pole_keeps_the_responses_on_its_side(run):
    content = run()
    assert content["traits"] == ["bold", "meek"]
    # bold: rollouts 0 and 1 of each pole; meek: 1 and 2 of the positive, 2 of the negative
    assert content["vectors"].tolist() == [[[10, 0], [0, 10]], [[-9.5, 0], [0, -9.5]]]
    bold, meek = content["counts"]
    assert (bold["n_used_positive"], bold["n_used_negative"]) == (2, 2)
    assert (meek["n_positive"], meek["n_used_positive"], meek["n_used_negative"]) == (3, 2, 1)
    assert meek["mean_score_positive"] == 72.5


def test_by_likelihood_both_poles_need_a_score_of_their_own_prompt(run):
    content = run(judge_reads=False, min_score=60)
    # bold: 0 and 1, 2; meek: 2, 1
    assert content["vectors"][:, 0, 0].tolist() == [8.5, -11]


def test_a_trait_with_too_few_is_a_row_with_its_reason_and_none_at_all_is_an_error(run, tmp_path):
    content = run(min_responses=2)
    assert content["traits"] == ["bold"]
    save_axis(
        tmp_path / "axis.pt", torch.tensor([[1.0, 0], [0, -2.0]]), {**METADATA, "layers": [0, 1]}
    )
    rank_traits(
        trait_vectors_path=tmp_path / "v.pt",
        axis_path=tmp_path / "axis.pt",
        traits_path=tmp_path / "traits.parquet",
        target_layer_setting=1,
    )
    bold, meek = read_table(tmp_path / "traits.parquet")[0].to_pylist()
    assert (bold["trait"], bold["cosine"], bold["norm"]) == ("bold", -1.0, 10.0)
    assert (bold["layer_0"], bold["layer_1"]) == (1.0, -1.0)
    assert (meek["used"], meek["cosine"], meek["layer_0"]) == (False, None, None)
    assert meek["reason"] == ("1 negative responses count, 2 needed (vectors.min_responses)")
    with pytest.raises(VectorError, match=r"none of 2 traits has 4 .*traits\.min_score"):
        run(min_responses=4)
