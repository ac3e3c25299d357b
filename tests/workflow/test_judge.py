"""A whole run with a hosted judge: the stub server."""

from pathlib import Path

import pytest
from stub_anthropic import KEY, StubAnthropic
from workflow.test_workflow import edit_config, make_project, snakemake

from axiskit.artifacts import read_table

pytestmark = pytest.mark.workflow

RESULTS = Path("results") / "tiny"
TARGET = "results/tiny/scores/000.parquet"
N_RESPONSES = 30  # 5 roles, 2 instructions, 3 questions


def fault(prompt, n):
    """The first request with some prompts fails in some way."""
    kinds = [None, None, "500", None, "unreadable", None, "429", "cut"]
    return kinds[len(prompt) % len(kinds)] if n == 0 else None


@pytest.fixture(scope="module")
def stub():
    with StubAnthropic(lambda prompt: str(2 + len(prompt) % 2), fault) as served:
        yield served


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.fixture(scope="module")
def project(stub, tmp_path_factory):
    """A project that has scores by a hosted judge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        folder = make_project(
            tmp_path_factory.mktemp("hosted"),
            judge={
                "backend": "anthropic",
                "model": "claude-test",
                "base_url": stub.url,
                "prices": {"claude-test": [1.0, 5.0]},
                "max_cost_usd": 1.0,
            },
        )
        edit_config(None, "shards", 1)(folder)
        run = snakemake(folder, TARGET)
        assert "asking claude-test: " in run.stderr
        assert "at most $1.00 in all (judge.max_cost_usd)" in run.stderr
    return folder


def test_every_response_has_a_score_of_the_judge_and_was_asked_once(project, stub):
    table, metadata = read_table(project / TARGET)
    rows = table.to_pylist()
    assert metadata["stages"]["ask_judge"]["model"] == "claude-test"
    assert len(rows) == N_RESPONSES
    assert {row["score"] for row in rows} == {2, 3}
    assert all(row["tokens_in"] > 0 and row["judge"] == "claude-test" for row in rows)
    assert stub.asked_after_verdict == 0
    assert stub.faults
    assert stub.refused_bodies == []


def jobs(folder):
    output = snakemake(folder, "-n", TARGET).stdout
    return {
        line.split()[0]
        for line in output.partition("Job stats:")[2].partition("total")[0].splitlines()
        if line.strip() and line.split()[-1].isdigit()
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_in_flight", 3, set()),
        ("backend", "anthropic-batch", set()),
        ("max_cost_usd", 9.0, set()),
        ("prices", {"claude-test": [2.0, 5.0]}, set()),
        ("max_tokens", 17, {"ask_judge"}),
    ],
)
def test_what_runs_again_after_a_change(project, name, value, expected):
    before = (project / "config.yaml").read_text()
    edit_config("judge", name, value)(project)
    try:
        assert jobs(project) == expected
    finally:
        (project / "config.yaml").write_text(before)


def test_a_missing_key_is_told_before_any_work_and_a_dry_run_needs_none(project, monkeypatch):
    before = (project / "config.yaml").read_text()
    edit_config("judge", "base_url", None)(project)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    try:
        assert jobs(project) == {"ask_judge"}
        run = snakemake(project, TARGET, check=False)
        assert run.returncode != 0
        assert "AccountError: ANTHROPIC_API_KEY: not set, it is needed by" in run.stderr
        assert "Traceback" not in run.stderr
        assert "rule ask_judge" not in run.stdout + run.stderr
        assert snakemake(project, "results/tiny/responses/000.parquet")  # this needs no key
    finally:
        (project / "config.yaml").write_text(before)


def test_an_audit_asks_both_judges_and_then_has_nothing_to_do(project, stub):
    asked = stub.asked.total()
    for name, value in (("second_judge", {"max_tokens": 18}), ("n_responses", 12)):
        edit_config("audit", name, value)(project)
    snakemake(project, "audit")
    assert stub.asked.total() - asked >= 24  # the first judge again, and the second
    text = (project / RESULTS / "audit" / "audit.txt").read_text()
    assert "Audit of the judge, tiny: 12 responses of" in text
    assert "first judge / second judge                100% of   12 the same" in text
    assert (project / RESULTS / "audit" / "sheet.html").exists()
    assert "Nothing to be done" in snakemake(project, "-n", "audit").stdout


def test_the_key_is_nowhere_in_a_run_even_if_the_server_says_it(project, stub, monkeypatch):
    monkeypatch.setattr(stub, "key", "another")  # ours is refused, and said in the error
    before = (project / "config.yaml").read_text()
    edit_config("judge", "max_tokens", 17)(project)
    run = snakemake(project, TARGET, check=False)
    (project / "config.yaml").write_text(before)
    assert run.returncode != 0
    assert (
        "invalid x-api-key: [key]; an account with credit and access to claude-test" in run.stderr
    )
    assert KEY not in run.stderr + run.stdout
    files = [path for path in project.rglob("*") if path.is_file()]
    assert any(".snakemake/metadata" in str(path) for path in files)
    assert any("logs/ask_judge" in str(path) for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
