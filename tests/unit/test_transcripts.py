"""Scripts of user turns and recorded transcripts: read, or refused with one clear line."""

import json

import pytest
import yaml
from conftest import ROOT

from axiskit.errors import TranscriptError
from axiskit.transcripts import (
    check_messages,
    find_scripts,
    first_crossing,
    load_script,
    load_transcript,
)

USER = {"role": "user", "content": "Hello?"}
ASSISTANT = {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be a pirate."}


@pytest.mark.parametrize(
    ("content", "n_messages"),
    [
        ({"model": "m", "conversation": [USER, ASSISTANT]}, 2),
        ({"conversation": [USER, ASSISTANT], "system_prompt": "Be a pirate."}, 3),
        ({"conversation": [SYSTEM, USER, ASSISTANT], "system_prompt": "Other."}, 3),
        ({"conversation": [USER, ASSISTANT], "projections": [1.0], "turns": 1}, 2),
        ([USER, ASSISTANT, USER, ASSISTANT, USER], 5),
    ],
)
def test_published_shapes_are_read(tmp_path, content, n_messages):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    assert len(load_transcript(path).messages) == n_messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be parsed as JSON"),
        ('{"messages": []}', "conversation: Field required"),
        ('{"conversation": [{"role": "user"}, {"role": "user", "content": "x"}]}', "role and con"),
        (json.dumps([ASSISTANT, USER]), "message 0: found role 'assistant', 'user' needed"),
        (json.dumps([SYSTEM, USER, USER]), "message 2: found role 'user', 'assistant' needed"),
        (json.dumps([SYSTEM, USER]), "no assistant message"),
        (json.dumps([USER, SYSTEM, ASSISTANT]), "message 1: found role 'system'"),
    ],
)
def test_bad_transcripts_are_named(tmp_path, text, message):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(TranscriptError, match=message) as error:
        load_transcript(path)
    assert str(path) in str(error.value)
    with pytest.raises(TranscriptError, match="no such transcript"):
        load_transcript(tmp_path / "none.json")


def test_messages_must_alternate():
    check_messages([SYSTEM, USER, ASSISTANT, USER])
    with pytest.raises(TranscriptError):
        check_messages([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": []}, "turns"),
        ({"turns": ["a", " "]}, "one is empty"),
        ({"name": "other"}, "found 'other', the file's name needs 'talk'"),
        ({"extra": 1}, "extra"),
        ({"domain": None}, "domain"),
    ],
)
def test_bad_scripts_are_named(tmp_path, change, message):
    content = {"name": "talk", "domain": "d", "description": "d", "turns": ["a"]} | change
    path = tmp_path / "talk.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(TranscriptError, match=message):
        load_script(path)
    with pytest.raises(TranscriptError, match="did you mean 'talk'"):
        find_scripts(tmp_path, ["talks"])
    with pytest.raises(TranscriptError, match="no such folder"):
        find_scripts(tmp_path / "none")


def test_the_scripts_that_come_along():
    scripts = [
        load_script(path) for path in find_scripts(ROOT / "resources/conversations").values()
    ]
    domains = [script.domain for script in scripts]
    assert set(domains) == {"coding", "writing", "therapy", "philosophy"}
    assert min(domains.count(domain) for domain in domains) >= 2
    assert all(8 <= len(script.turns) <= 12 for script in scripts)
    turns = [turn for script in scripts for turn in script.turns]
    assert len(set(turns)) == len(turns)


def test_first_crossing_is_the_first_turn_below():
    assert first_crossing([3.0, None, 1.0, 2.0], 2.0) == 2
    assert first_crossing([3.0, None], 2.0) is None
