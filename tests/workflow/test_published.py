"""Roles and questions in the published format, unchanged, and traits; the stub is the judge."""

import json

import pytest
import yaml
from stub_anthropic import KEY, StubAnthropic
from workflow.test_workflow import RESULTS, make_project, snakemake

from axiskit.artifacts import read_table
from axiskit.axis import load_axis

pytestmark = pytest.mark.workflow

ROLES = {
    "default": ["You are an AI assistant.", "You are {model_name}."],
    "oracle": ["You are an oracle who speaks in riddles.", "Foretell, and never plainly."],
    "smith": ["You are a blacksmith.", "Hammer first, words after."],
    "tide": ["You are the tide.", "Come and go as you speak."],
}
"""Ours, in the published shape."""

EVAL_PROMPT = """Does the answer play {role}?
Question: {{question}}
Answer: {{answer}}
Give 0, 1, 2 or 3, nothing else."""


def verdict(prompt):
    """How the stub judges: roles fully; of a trait the positive pole is not told from the other."""
    if "shows a trait" in prompt:
        return str(20 + 60 * (len(prompt) % 2))
    return "3"


@pytest.fixture(scope="module")
def stub():
    with StubAnthropic(verdict) as served:
        yield served


@pytest.fixture(scope="module")
def project(stub, tmp_path_factory):
    folder = make_project(
        tmp_path_factory.mktemp("published"),
        model={"display_name": "Tiny"},
        roles={"dir": "published/roles/instructions", "include": "all"},
        questions={"file": "published/extraction_questions.jsonl", "count": 2},
        traits={"include": ["calm", "petty"], "min_score": 50},
        judge={"backend": "anthropic", "model": "any", "base_url": stub.url},
    )
    roles = folder / "published" / "roles" / "instructions"
    roles.mkdir(parents=True)
    for name, instructions in ROLES.items():
        content = {
            "instruction": [{"pos": text} for text in instructions],
            "eval_prompt": EVAL_PROMPT.format(role=name),
        }
        (roles / f"{name}.json").write_text(json.dumps(content))
    questions = [{"question": f"What of {word}?", "id": i} for i, word in enumerate("abc")]
    path = folder / "published" / "extraction_questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"shards": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        snakemake(folder, f"{RESULTS}/axis.pt", f"{RESULTS}/traits.parquet")
    return folder


def test_published_roles_and_questions_give_an_axis(project):
    assert load_axis(project / RESULTS / "axis.pt").shape == (4, 32)
    rows = read_table(project / RESULTS / "responses" / "000.parquet")[0].to_pylist()
    assert {(row["role"], row["system_prompt"]) for row in rows} == {
        (name, text.replace("{model_name}", "Tiny"))
        for name, texts in ROLES.items()
        for text in texts
    }
    assert {row["question"] for row in rows} == {"What of a?", "What of b?"}


def test_each_role_is_judged_by_its_own_prompt(project, stub):
    rows = read_table(project / RESULTS / "responses" / "000.parquet")[0].to_pylist()
    expected = {
        EVAL_PROMPT.format(role=row["role"])
        .replace("{question}", row["question"])
        .replace("{answer}", row["response"])
        for row in rows
        if row["kind"] == "role" and row["response"].strip()
    }
    assert {prompt for prompt in stub.asked if "shows a trait" not in prompt} == expected


def test_a_hosted_judge_scores_traits_0_to_100_and_each_pole_keeps_its_side(project, stub):
    rows = read_table(project / RESULTS / "scores" / "traits-000.parquet")[0].to_pylist()
    assert {row["score"] for row in rows} == {20, 80}
    assert {row["role"] for row in rows} == {"calm+", "calm-", "petty+", "petty-"}
    asked = [prompt for prompt in stub.asked if "shows a trait" in prompt]
    assert {prompt.partition("Trait: ")[2].partition("\n")[0] for prompt in asked} == {
        "calm",
        "petty",
    }
    table = read_table(project / RESULTS / "traits.parquet")[0].to_pandas().set_index("trait")
    for name in ("calm", "petty"):
        positive, negative = (
            [row["score"] for row in rows if row["role"] == f"{name}{sign}"] for sign in "+-"
        )
        assert table["n_used_positive"][name] == positive.count(80)
        assert table["n_used_negative"][name] == negative.count(20)
