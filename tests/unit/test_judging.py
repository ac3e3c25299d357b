import json
import subprocess
import sys

import pyarrow as pa
import pytest
import yaml
from stub_anthropic import KEY, StubAnthropic

from axiskit.artifacts import read_table, write_table
from axiskit.errors import JudgeError
from axiskit.generation import RESPONSES
from axiskit.judge_prompts import role_prompt
from axiskit.judging import _check_unscored, is_plain_refusal, likelihood_score


@pytest.mark.parametrize(
    ("ratio", "score"), [(-0.1, 1), (-1e-9, 1), (0.0, 2), (0.049, 2), (0.05, 3), (1.0, 3)]
)
def test_thresholds_give_1_2_3(ratio, score):
    assert likelihood_score("Arr.", ratio, [0.0, 0.05]) == score


def test_a_plain_refusal_scores_0_whatever_the_ratio():
    assert likelihood_score("I cannot help with that.", 5.0, [0.0, 0.05]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I cannot pretend to be a ghost.",
        "Sorry, I can't do that.",
        "As an AI language model, I do not have feelings.",
        "I am just an AI and have no day.",
        "Unfortunately, I cannot answer this.",
        "I am not able to play that role.",
    ],
)
def test_plain_refusals(text):
    assert is_plain_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't wait to tell ye of the sea.",
        "I am sorry for your loss, traveller.",
        "Sorry is a word the wind forgets.",
        "I will not lie: the ledger is short.",
        "As an accountant, I would first count the receipts.",
        "I cannot see the sun, and so I wait.",
        "",
    ],
)
def test_answers_that_only_sound_like_refusals(text):
    assert not is_plain_refusal(text)


def test_too_many_unscored_responses_of_a_role_fail_with_their_reasons():
    rows = [{"role": "ghost", "score": 3}] * 8 + [{"role": "ghost", "reason": "empty response"}] * 2
    _check_unscored(rows, 0.2)
    with pytest.raises(JudgeError, match=r"'ghost': 2 of 10 .*2 empty response.*max_unscored"):
        _check_unscored(rows, 0.1)


ASK = """
import sys
from axiskit.judging import ask_judge
folder, url = sys.argv[1:]
ask_judge(
    responses_path=f"{folder}/responses.parquet",
    role_paths=[f"{folder}/pirate.yaml", f"{folder}/ghost.json"],
    scores_path=f"{folder}/scores.parquet",
    journal_folder=f"{folder}/journal",
    shard="000",
    model="claude-test",
    base_url=url,
    extra_body={"thinking": {"type": "disabled"}, "output_config": None},
    max_tokens=16,
    max_unscored=0.5,
    limits={"backend": "anthropic", "max_in_flight": 4, "thresholds": [0, 1]},
)
print({"torch", "transformers"} & {*sys.modules})
"""


def test_a_hosted_judge_reads_each_role_with_its_own_prompt_and_needs_no_torch(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    pirate = {"name": "pirate", "kind": "role", "group": "x", "description": "Says arr."}
    (tmp_path / "pirate.yaml").write_text(yaml.safe_dump(pirate | {"instructions": ["Be it."]}))
    ghost = {"instruction": [{"pos": "Haunt."}], "eval_prompt": "Q {question} A {answer}"}
    (tmp_path / "ghost.json").write_text(json.dumps(ghost))
    texts = {"pirate/0/0": "Arr.", "ghost/0/0": "Boo.", "ghost/0/1": " ", "default/0/0": "Hi."}
    rows = [
        {
            "rollout_id": id_,
            "role": id_.split("/")[0],
            "kind": "default" if id_.startswith("default") else "role",
            "system_prompt": "",
            "question": "Why?",
            "response": text,
            "n_tokens": 2,
        }
        for id_, text in texts.items()
    ]
    table = pa.Table.from_pylist(rows, schema=RESPONSES)
    write_table(tmp_path / "responses.parquet", table, {"stages": {}})
    with StubAnthropic(lambda prompt: "2" if "Boo" in prompt else "3") as stub:
        command = [sys.executable, "-c", ASK, str(tmp_path), stub.url]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.stdout == "set()\n", run.stderr
        ours = role_prompt(name="pirate", description="Says arr.", question="Why?", response="Arr.")
        assert stub.asked == {ours: 1, "Q Why? A Boo.": 1}
    table, metadata = read_table(tmp_path / "scores.parquet")
    scores = {row["rollout_id"]: (row["score"], row["reason"]) for row in table.to_pylist()}
    assert scores == {
        "pirate/0/0": (3, None),
        "ghost/0/0": (2, None),
        "ghost/0/1": (None, "no response tokens"),
    }
    assert metadata["stages"]["ask_judge"]["max_tokens"] == 16
