"""Sampling does not depend on how the work is cut up; nothing is generated twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from conftest import CHATML, save_broken_model, save_tiny_model, tiny_tokenizer

from axiskit.artifacts import read_table
from axiskit.errors import DiskError, ModelError, NonFiniteError, TemplateError
from axiskit.generation import generate_responses, sample_responses
from axiskit.likelihood import log_likelihoods
from axiskit.models import load_model, load_tokenizer, model_fingerprint, stop_token_ids
from axiskit.rollouts import Rollout, digest
from axiskit.templates import chat_messages, render_prompt

SAMPLING = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 24}


def rollouts(n):
    return [Rollout(f"r/0/{i}", "r", "role", 0, i, "", "q" * (1 + 7 * i % 40), i) for i in range(n)]


def sample(model, tokenizer, planned, batch_size):
    answers = {}
    for i in range(0, len(planned), batch_size):
        batch = planned[i : i + batch_size]
        tokens = [tokenizer(r.question, add_special_tokens=False).input_ids for r in batch]
        rows = sample_responses(
            model,
            tokenizer,
            tokens,
            seeds=[rollout.seed for rollout in batch],
            names=[rollout.rollout_id for rollout in batch],
            **SAMPLING,
        )
        answers |= {r.rollout_id: row for r, row in zip(batch, rows, strict=True)}
    return answers


def texts(answers):
    return {
        name: (row["response"], row["n_tokens"], row["finish_reason"])
        for name, row in answers.items()
    }


def test_batch_size_and_order_change_nothing(any_model):
    model, tokenizer = load_model(any_model, dtype="float32")
    planned = rollouts(16)
    expected = sample(model, tokenizer, planned, 16)
    assert len({row["response"] for row in expected.values()}) > 8
    assert texts(sample(model, tokenizer, planned[::-1], 16)) == texts(expected)
    for batch_size in (1, 5):
        found = sample(model, tokenizer, planned, batch_size)
        assert texts(found) == texts(expected)
        for name, row in found.items():
            assert row["log_likelihood"] == pytest.approx(
                expected[name]["log_likelihood"], abs=1e-3
            )


def test_stops_at_a_stop_token_and_says_why(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32")
    answers = sample(model, tokenizer, rollouts(40), 40)
    assert {row["finish_reason"] for row in answers.values()} == {"stop", "length"}
    for row in answers.values():
        assert (row["n_tokens"] == 24) == (row["finish_reason"] == "length")
        assert "<|im_end|>" not in row["response"]


def test_log_likelihood_is_that_of_the_sampled_tokens(tiny_model, monkeypatch):
    model, tokenizer = load_model(tiny_model, dtype="float32")
    sampled = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **kwargs: sampled.append(ids) or decode(ids, **kwargs)
    )
    planned = rollouts(12)
    answers = sample(model, tokenizer, planned, 12)
    for rollout, response in zip(planned, sampled, strict=True):
        prompt = tokenizer(rollout.question, add_special_tokens=False).input_ids
        mask = [False] * len(prompt) + [True] * len(response)
        found = answers[rollout.rollout_id]
        assert found["n_tokens"] == len(response)
        expected = log_likelihoods(model, [prompt + response], [mask])[0] if response else 0.0
        assert found["log_likelihood"] == pytest.approx(float(expected), abs=1e-3)


def test_the_models_own_sampling_defaults_are_not_applied(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "generation_config.json"
    defaults = {"repetition_penalty": 5.0, "top_k": 1, "do_sample": True, "min_new_tokens": 20}
    path.write_text(json.dumps(json.loads(path.read_text()) | defaults))
    expected = sample(*load_model(tiny_model, dtype="float32"), rollouts(8), 8)
    found = sample(*load_model(str(folder), dtype="float32"), rollouts(8), 8)
    assert texts(found) == texts(expected)


def test_grouped_attention_gives_the_numbers_of_sdpa(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32")
    assert model.config._attn_implementation == "sdpa_grouped"
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    plain.generation_config = model.generation_config
    found, expected = (sample(m, tokenizer, rollouts(8), 8) for m in (model, plain))
    assert texts(found) == texts(expected)
    for name in found:
        assert found[name]["log_likelihood"] == pytest.approx(
            expected[name]["log_likelihood"], abs=1e-4
        )


@pytest.fixture
def shard(tmp_path, tiny_model):
    """Arguments of a small shard."""
    roles = tmp_path / "roles"
    roles.mkdir()
    for name, kind, texts_ in (
        ("ghost", "role", ["You are a ghost.", "Haunt."]),
        ("default", "default", ["", "You are {model_name}."]),
    ):
        role = {
            "name": name,
            "kind": kind,
            "group": kind,
            "description": "",
            "instructions": texts_,
        }
        (roles / f"{name}.yaml").write_text(yaml.safe_dump(role))
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"Q{i}?"}) + "\n" for i in range(4)))
    return {
        "role_paths": sorted(roles.iterdir()),
        "questions_path": questions,
        "responses_path": tmp_path / "responses.parquet",
        "journal_folder": tmp_path / "journal",
        "shard": "000",
        "name": "tiny",
        "display_name": "Tiny",
        "model_path": tiny_model,
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
        "n_questions": 3,
        "prompts_per_role": 2,
        "default_prompts": 2,
        "engine": "transformers",
        "seed": 0,
        "batch_size": 4,
        "n_gpus": 0,
        "vllm": {"gpu_memory_utilization": 0.9, "enforce_eager": True},
        "layers": "all",
        "target_layer_setting": "auto",
        **SAMPLING,
    }


def journal_keys(folder):
    return [
        json.loads(line)["key"]
        for path in sorted(Path(folder).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_only_what_is_missing_is_generated(shard, tmp_path):
    generate_responses(**shard)
    table, metadata = read_table(shard["responses_path"])
    first = table.to_pylist()
    assert len(first) == 12
    assert {row["finish_reason"] for row in first} <= {"stop", "length"}
    assert metadata["model"]["hidden_size"] == 32
    assert metadata["stages"]["generate_responses"]["top_p"] == 0.95
    assert len(journal_keys(shard["journal_folder"])) == 12

    generate_responses(**shard)  # all there: the model is not even loaded
    assert len(journal_keys(shard["journal_folder"])) == 12

    generate_responses(**shard | {"n_questions": 4, "batch_size": 1})
    keys = journal_keys(shard["journal_folder"])
    assert len(keys) == len(set(keys)) == 16
    more = read_table(shard["responses_path"])[0].to_pylist()
    by_id = {row["rollout_id"]: row for row in more}
    assert [by_id[row["rollout_id"]] for row in first] == first

    journal = next(Path(shard["journal_folder"]).glob("*.jsonl"))  # a kill in the middle of a line
    journal.write_bytes(journal.read_bytes()[:-20])
    generate_responses(**shard | {"n_questions": 4, "batch_size": 3})
    again = read_table(shard["responses_path"])[0].to_pylist()
    for row, other in zip(again, more, strict=True):
        assert row.pop("log_likelihood") == pytest.approx(other.pop("log_likelihood"), abs=1e-3)
    assert again == more


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"seed": 1}, {"max_new_tokens": 5}, {"dtype": "bfloat16"}]
)
def test_what_changes_a_response_changes_its_key(shard, change):
    generate_responses(**shard)
    generate_responses(**shard | change)
    assert len(set(journal_keys(shard["journal_folder"]))) == 24


def test_no_room_for_the_activations_is_told_before_the_weights_are_read(shard):
    with pytest.raises(DiskError, match=r"free, .* needed .* by extract_activations"):
        generate_responses(**shard | {"n_rollouts_in_all": 10**15})
    assert not Path(shard["journal_folder"]).exists()
    generate_responses(**shard | {"n_rollouts_in_all": 12})


def test_keys_are_those_of_journals_that_users_have(shard):
    generate_responses(**shard)
    row = read_table(shard["responses_path"])[0].to_pylist()[-1]
    tokenizer = load_tokenizer(shard["model_path"])
    messages = chat_messages(tokenizer, row["system_prompt"], row["question"])
    prompt = render_prompt(tokenizer, messages)
    fingerprint = model_fingerprint(shard["model_path"])
    key = digest(1, fingerprint, "float32", prompt, SAMPLING, row["seed"])
    assert key in journal_keys(shard["journal_folder"])


def test_nan_in_a_weight_is_one_clear_error(shard, tiny_model, tmp_path):
    folder = save_broken_model(tiny_model, tmp_path / "broken")
    with pytest.raises(NonFiniteError, match=r"rollout (default|ghost)/./.: the model's logits"):
        generate_responses(**shard | {"model_path": str(folder)})
    assert not shard["responses_path"].exists()


def test_a_missing_template_is_told_before_the_weights_are_read(shard, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    tiny_tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "model.safetensors").write_text("not read")
    with pytest.raises(TemplateError, match=r"has no chat template.*model\.path"):
        generate_responses(**shard | {"model_path": str(folder)})


def test_what_is_no_model_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match=r"\(model\.path\)"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"\(model\.path\)"):
        model_fingerprint("nobody/no-such-model")
    folder = save_tiny_model(tmp_path / "cut")
    with open(folder / "model.safetensors", "rb+") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match=r"cannot be loaded \(model\.path\)"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": [2, 9]}, r"layer 9: the model has 4 layers"),
        ({"layers": [0, 1]}, r"layer 2 \(model\.target_layer\) is not among"),
    ],
)
def test_layers_extracted_later_are_checked_before_the_weights_are_read(
    shard, tmp_path, change, said
):
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").write_text("not read")
    with pytest.raises(ModelError, match=said):
        generate_responses(**shard | change | {"model_path": str(folder)})


def test_a_hub_id_is_told_by_its_commit(tiny_model, tmp_path):
    """A cache of the Hub as it lies on disk after a download."""
    commits = ["a" * 40, "b" * 40]
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    for commit in commits:
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
    code = "import sys; from axiskit.models import *; print(model_fingerprint('some/model'))"
    for commit in commits:
        (repository / "refs" / "main").write_text(commit)
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == commit


def test_fingerprint_tells_weights_apart(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    same = save_tiny_model(tmp_path / "same", seed=0)
    assert model_fingerprint(str(same)) == model_fingerprint(tiny_model)
    assert model_fingerprint(str(other)) != model_fingerprint(tiny_model)


def test_stop_tokens_of_model_and_tokenizer(tiny_model):
    model, tokenizer = load_model(tiny_model)
    assert stop_token_ids(model, tokenizer) == [258]
    assert model.generation_config.eos_token_id == [258]
    assert tokenizer.chat_template == CHATML
