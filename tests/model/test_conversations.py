"""Conversations: encoded turn by turn, held under each condition, resumed, and projected."""

import json
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import HIDDEN, N_LAYERS, ROOT, save_broken_model, tiny_facts

from axiskit import extract_response_activations, generate_response, get_config, project
from axiskit.activations import encode_conversation, token_projections
from axiskit.artifacts import read_table
from axiskit.axis import project_batch, save_axis
from axiskit.chat import conversation_prompt
from axiskit.conversations import hold_conversation
from axiskit.errors import ArtifactError, ModelError, NonFiniteError, TranscriptError
from axiskit.layers import decoder_blocks
from axiskit.models import load_model
from axiskit.trajectories import project_conversations, project_turns

TALK = [
    {"role": "system", "content": "Be a pirate."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": " Ahoy, who are you? "},
    {"role": "user", "content": "Ahoy"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nAhoy"},
]


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, dtype="float32")


def test_turns_are_found_in_the_tokens(loaded):
    tokenizer = loaded[1]
    tokens, turns = encode_conversation(tokenizer, TALK)
    texts = [
        tokenizer.decode([t for t, used in zip(tokens, turn, strict=True) if used])
        for turn in turns
    ]
    assert texts == ["Ahoy, who are you?", "Ahoy"]
    text = tokenizer.decode(tokens)
    assert "hm" not in text and text.endswith("Ahoy")
    with pytest.raises(TranscriptError):
        encode_conversation(tokenizer, TALK[:2])


def test_activations_per_turn_equal_the_plain_way(loaded):
    model, tokenizer = loaded
    per_turn = extract_response_activations(model, tokenizer, [TALK, TALK[:3]], per_turn=True)
    whole = extract_response_activations(model, tokenizer, [TALK, TALK[:3]])
    assert [a.shape for a in per_turn] == [(2, N_LAYERS, HIDDEN), (1, N_LAYERS, HIDDEN)]
    tokens, masks = encode_conversation(tokenizer, TALK)
    with torch.inference_mode():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for turn, mask in enumerate(masks):
        for layer in range(N_LAYERS - 1):
            expected = hidden[layer + 1][0, torch.tensor(mask)].mean(dim=0)
            assert torch.allclose(per_turn[0][turn, layer], expected, atol=1e-4)
    counts = torch.tensor([float(sum(mask)) for mask in masks])
    expected = torch.einsum("t,tlh->lh", counts / counts.sum(), per_turn[0])
    assert torch.allclose(whole[0], expected, atol=1e-4)
    # what comes later does not change an earlier turn
    assert torch.allclose(per_turn[0][0], whole[1], atol=1e-4)
    [two] = extract_response_activations(model, tokenizer, [TALK], layers=[2, 0])
    assert torch.allclose(two, whole[0][[0, 2]])
    axis = random(0, N_LAYERS, HIDDEN)
    assert project(whole[0], axis, layer=2).ndim == 0


def test_mean_of_token_projections_is_the_projection_of_the_mean(loaded):
    model, tokenizer = loaded
    axis = random(0, N_LAYERS, HIDDEN)
    turns = project_turns(model, tokenizer, TALK, axis, range(N_LAYERS), 2)
    [activations] = extract_response_activations(model, tokenizer, [TALK], per_turn=True)
    expected = project_batch(activations, axis)
    for turn, row in enumerate(turns):
        found = torch.tensor([row[f"layer_{i}"] for i in range(N_LAYERS)])
        assert torch.allclose(found, expected[turn], atol=1e-4)
        mean = sum(row["token_projections"]) / row["n_tokens"]
        assert mean == pytest.approx(row["layer_2"], abs=1e-4)
    assert "".join(turns[0]["tokens"]) == "Ahoy, who are you?"
    # one layer alone
    tokens, _ = encode_conversation(tokenizer, TALK)
    hooks = [len(block._forward_hooks) for block in decoder_blocks(model)]
    alone = token_projections(model, tokens, axis[[2]], [2])
    assert torch.allclose(alone, token_projections(model, tokens, axis, range(N_LAYERS))[[2]])
    assert [len(block._forward_hooks) for block in decoder_blocks(model)] == hooks


def test_an_empty_turn_has_no_projection(loaded):
    talk = [*TALK[:2], {"role": "assistant", "content": " "}, *TALK[3:]]
    turns = project_turns(*loaded, talk, random(0, N_LAYERS, HIDDEN), range(N_LAYERS), 0)
    assert turns[0]["n_tokens"] == 0
    assert turns[0]["layer_0"] is None
    assert turns[1]["layer_0"] is not None


def test_generate_response_depends_on_its_seed_alone(loaded):
    model, tokenizer = loaded
    talk = TALK[:2]
    pieces = []
    settings = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    first = generate_response(model, tokenizer, talk, **settings, seed=1, on_text=pieces.append)
    assert "".join(pieces) == first != ""
    assert generate_response(model, tokenizer, talk, **settings, seed=1) == first
    others = {generate_response(model, tokenizer, talk, **settings) for _ in range(5)}
    assert len(others) > 1
    with pytest.raises(TranscriptError, match=r"\d+ tokens, the model reads 512"):
        generate_response(model, tokenizer, talk, 500)
    greedy = generate_response(model, tokenizer, talk, 12, do_sample=False)
    ids = tokenizer(conversation_prompt(tokenizer, talk), return_tensors="pt").input_ids
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert greedy == tokenizer.decode(plain, skip_special_tokens=True)


def test_get_config_by_table_and_by_the_models_own(tiny_model, tmp_path):
    assert get_config("Qwen/Qwen3-32B")["capping_experiment"] == "layers_46:54-p0.25"
    config = get_config(tiny_model)
    assert (config["target_layer"], config["total_layers"]) == (2, N_LAYERS)
    with pytest.raises(ModelError, match="neither a listed model"):
        get_config(str(tmp_path / "none"))


@pytest.fixture
def scripts(tmp_path):
    paths = []
    for name, turns in {"long": ["One?", "Two?", "Three?"], "short": ["Uno?"]}.items():
        path = tmp_path / f"{name}.yaml"
        content = {"name": name, "domain": "d", "description": "d", "turns": turns}
        path.write_text(yaml.safe_dump(content))
        paths.append(path)
    return paths


@pytest.fixture
def settings(tmp_path, tiny_model, scripts):
    """What all conditions are held with; an axis and floors that make capping fire."""
    facts = tiny_facts(tiny_model)
    metadata = {"model": facts, "stages": {}, "layers": list(range(N_LAYERS))}
    axis = random(0, N_LAYERS, HIDDEN)
    save_axis(tmp_path / "axis.pt", axis, metadata)
    config = {
        "vectors": {"v": {"vector": -axis[1], "layer": 1}},
        "experiments": [
            {"id": "layers_1:2-p0.25", "interventions": [{"vector": "v", "cap": -20.0}]}
        ],
        "metadata": metadata,
    }
    torch.save(config, tmp_path / "capping_config.pt")
    return {
        "script_paths": scripts,
        "axis_path": tmp_path / "axis.pt",
        "capping_config_path": tmp_path / "capping_config.pt",
        "journal_folder": tmp_path / "journal",
        "experiment": "auto",
        "away_coefficient": -10.0,
        "target_layer_setting": "auto",
        "name": "tiny",
        "model_path": tiny_model,
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_turns": None,
        "max_new_tokens": 8,
        "seed": 0,
        "batch_size": 4,
    }


def hold(settings, condition, folder, **changes):
    paths = [folder / f"{name}.{condition}.json" for name in ("long", "short")]
    hold_conversation(**settings | changes, condition=condition, conversation_paths=paths)
    return [json.loads(path.read_text()) for path in paths]


def test_conditions_differ_and_say_what_they_did(settings, tmp_path, loaded):
    held = {c: hold(settings, c, tmp_path) for c in ("unsteered", "capped", "away")}
    answers = {c: held[c][0]["conversation"][1]["content"] for c in held}
    assert len(set(answers.values())) == 3
    assert [len(content["conversation"]) for content in held["capped"]] == [6, 2]
    assert held["unsteered"][0]["stats"] is None
    assert held["capped"][0]["stats"]["fired"] > 0.5
    assert held["capped"][0]["intervention"]["floors"] == {"1": 20.0}
    assert held["away"][0]["stats"]["fired"] == 1
    assert held["away"][0]["intervention"]["layer"] == 2
    # the first answer is what anyone gets who caps by hand, with the same seed
    assert held["capped"][0]["conversation"][1]["content"] != answers["unsteered"]


def test_batches_and_turn_limit_change_no_answer(settings, tmp_path):
    first = hold(settings, "capped", tmp_path)
    again = hold(
        settings | {"journal_folder": tmp_path / "other"}, "capped", tmp_path, batch_size=1
    )
    assert [c["conversation"] for c in first] == [c["conversation"] for c in again]
    assert first[0]["stats"]["fired"] == pytest.approx(again[0]["stats"]["fired"])
    cut = hold(settings, "capped", tmp_path, max_turns=2)
    assert cut[0]["conversation"] == first[0]["conversation"][:4]


def test_finished_answers_are_not_asked_for_again(settings, tmp_path, monkeypatch):
    first = hold(settings, "capped", tmp_path)
    monkeypatch.setattr("axiskit.conversations.load_model", None)  # would fail
    assert hold(settings, "capped", tmp_path) == first
    with pytest.raises(TypeError):
        hold(settings, "capped", tmp_path, seed=1)


KILLED = """
import os, signal, sys, json
sys.path.insert(0, sys.argv[1])
from axiskit import conversations
append, count = conversations.Journal.append, 0
def kill_after_two(self, key, row):
    global count
    append(self, key, row)
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
conversations.Journal.append = kill_after_two
conversations.hold_conversation(**json.loads(sys.argv[2]))
"""


def test_a_killed_job_goes_on_at_its_turn(settings, tmp_path):
    plain = hold(settings | {"journal_folder": tmp_path / "other"}, "away", tmp_path)
    arguments = json.dumps(
        settings | {"condition": "away", "conversation_paths": ["a", "b"]}, default=str
    )
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(ROOT / "src"), arguments], check=False, cwd=tmp_path
    )
    assert run.returncode == -signal.SIGKILL
    lines = [
        json.loads(line)
        for path in (tmp_path / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == 2
    resumed = hold(settings, "away", tmp_path)
    assert [c["conversation"] for c in resumed] == [c["conversation"] for c in plain]
    assert [c["stats"] for c in resumed] == [c["stats"] for c in plain]
    keys = [
        json.loads(line)["key"]
        for path in (tmp_path / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(keys) == len(set(keys)) == 4  # none twice


def test_what_cannot_be_held_is_told_before_loading(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("axiskit.conversations.load_model", None)
    with pytest.raises(TranscriptError, match=r"'long': up to \d+ tokens, the model reads 512"):
        hold(settings, "unsteered", tmp_path, max_new_tokens=200)
    content = torch.load(settings["axis_path"], weights_only=True)
    content["metadata"]["model"]["fingerprint"] = "of another"
    torch.save(content, settings["axis_path"])
    with pytest.raises(ArtifactError, match="files of two models: fingerprint is 'of another'"):
        hold(settings, "away", tmp_path)


def test_trajectories_of_held_and_recorded_conversations(settings, tmp_path, tiny_model):
    hold(settings, "unsteered", tmp_path)
    (tmp_path / "recorded.json").write_text(json.dumps({"conversation": TALK}))
    arguments = {
        "conversation_paths": [tmp_path / "long.unsteered.json"],
        "transcript_paths": [tmp_path / "recorded.json"],
        "axis_path": settings["axis_path"],
        "trajectories_path": tmp_path / "trajectories.parquet",
        "target_layer_setting": "auto",
        "model_path": tiny_model,
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
    }
    project_conversations(**arguments)
    table, metadata = read_table(tmp_path / "trajectories.parquet")
    rows = table.to_pandas()
    assert metadata["target_layer"] == 2
    assert rows["condition"].tolist() == ["unsteered"] * 3 + ["transcript"] * 2
    assert rows["turn"].tolist() == [0, 1, 2, 0, 1]
    assert rows["n_tokens"].tolist()[-1] == 4
    broken = save_broken_model(tiny_model, tmp_path / "broken")
    with pytest.raises(NonFiniteError, match="'long', turn 1: a projection"):
        project_conversations(**arguments | {"model_path": str(broken)})
