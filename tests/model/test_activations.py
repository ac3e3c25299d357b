"""Extraction against the plain way: hidden states of the whole model, averaged afterwards."""

from pathlib import Path

import pytest
import torch
import transformers
from conftest import HIDDEN, N_LAYERS, save_broken_model, save_tiny_model

from axiskit.activations import (
    _Checkpoint,
    encode_response,
    extract_activations,
    mean_activations,
)
from axiskit.artifacts import load_activations, read_table, write_table
from axiskit.errors import ModelError, NonFiniteError, WriteError
from axiskit.generation import RESPONSES
from axiskit.layers import decoder_blocks, select_layers, target_layer
from axiskit.likelihood import log_likelihoods
from axiskit.models import load_model

TEXTS = ["short", "a somewhat longer answer, this one", "x", "and\nlines \u00e9"]


def conversations(tokenizer):
    return [encode_response(tokenizer, "", "q" * (i + 1), text) for i, text in enumerate(TEXTS)]


def test_means_equal_hidden_states_averaged_one_by_one(any_model):
    model, tokenizer = load_model(any_model, dtype="float32")
    encoded = conversations(tokenizer)
    tokens, masks = zip(*encoded, strict=True)
    found = mean_activations(model, tokens, masks, range(N_LAYERS), tokenizer.pad_token_id)
    assert found.shape == (len(TEXTS), N_LAYERS, HIDDEN)
    for row, (ids, mask) in zip(found, encoded, strict=True):
        with torch.inference_mode():
            output = model(torch.tensor([ids]), output_hidden_states=True)
        for layer in range(N_LAYERS - 1):  # hidden_states[i + 1], but for the normed last one
            expected = output.hidden_states[layer + 1][0, torch.tensor(mask)].mean(dim=0)
            assert torch.allclose(row[layer], expected, atol=1e-4, rtol=1e-4)


def test_last_layer_is_the_stream_before_the_final_norm(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32")
    ids, mask = conversations(tokenizer)[1]
    found = mean_activations(model, [ids], [mask], [N_LAYERS - 1], tokenizer.pad_token_id)[0, 0]
    kept = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    with torch.inference_mode():
        model(torch.tensor([ids]))
    handle.remove()
    assert torch.allclose(found, kept[0][0, torch.tensor(mask)].mean(dim=0), atol=1e-4)


def test_hooks_come_off(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32")
    tokens, masks = zip(*conversations(tokenizer), strict=True)
    mean_activations(model, tokens, masks, [0], tokenizer.pad_token_id)
    with pytest.raises(IndexError):
        mean_activations(model, [[999]], [[True]], [0, 1], tokenizer.pad_token_id)
    assert not any(block._forward_hooks for block in decoder_blocks(model))


def test_log_likelihoods_equal_the_plain_way(any_model):
    model, tokenizer = load_model(any_model, dtype="float32")
    encoded = conversations(tokenizer)
    found = log_likelihoods(model, *zip(*encoded, strict=True))
    for value, (ids, mask) in zip(found, encoded, strict=True):
        with torch.inference_mode():
            table = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        expected = sum(float(table[i - 1, ids[i]]) for i, used in enumerate(mask) if used)
        assert float(value) == pytest.approx(expected, abs=2e-3)


@pytest.fixture
def shard(tmp_path, tiny_model):
    rows = [
        {
            "rollout_id": f"ghost/0/{i}",
            "role": "ghost",
            "kind": "role",
            "prompt_index": 0,
            "question_index": i,
            "system_prompt": "Haunt.",
            "question": f"Why {i}?",
            "response": text,
            "n_tokens": len(text),
            "log_likelihood": 0.0,
            "finish_reason": "stop",
            "seed": i,
        }
        for i, text in enumerate([*TEXTS, "  "])
    ]
    metadata = {
        "model": {"name": "tiny", "hidden_size": HIDDEN, "n_layers": N_LAYERS},
        "stages": {},
        "config_fingerprint": "x",
    }
    path = tmp_path / "responses.parquet"
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist(rows, schema=RESPONSES), metadata)
    return {
        "responses_path": path,
        "activations_path": tmp_path / "activations.pt",
        "checkpoint_folder": tmp_path / "checkpoints",
        "shard": "000",
        "model_path": tiny_model,
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
        "layers": "all",
        "tokens_per_batch": 10_000,
    }


def test_file_holds_what_was_computed_whatever_the_batches(shard):
    extract_activations(**shard)
    first = load_activations(shard["activations_path"])
    assert first["rollout_id"] == [f"ghost/0/{i}" for i in range(len(TEXTS))]  # " " has no tokens
    assert first["n_tokens"] == [len(text.encode()) for text in TEXTS]
    assert first["activations"].dtype == torch.bfloat16
    assert first["layers"] == list(range(N_LAYERS))
    extract_activations(**shard | {"tokens_per_batch": 1, "layers": [2, 0]})
    second = load_activations(shard["activations_path"])
    assert second["layers"] == [0, 2]
    assert torch.allclose(
        second["activations"].float(), first["activations"][:, [0, 2]].float(), rtol=2**-7
    )
    assert not list(shard["checkpoint_folder"].glob("*"))


def test_a_shard_of_empty_responses_gives_an_empty_file(shard):
    table, metadata = read_table(shard["responses_path"])
    write_table(shard["responses_path"], table.slice(len(TEXTS)), metadata)
    extract_activations(**shard)
    content = load_activations(shard["activations_path"])
    assert content["rollout_id"] == []
    assert content["activations"].shape == (0, N_LAYERS, HIDDEN)


def test_a_killed_job_goes_on_where_it_was(shard, monkeypatch):
    import axiskit.activations as module

    extract_activations(**shard)
    expected = load_activations(shard["activations_path"])
    read = []

    def read_two(*args):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(args)
        return mean_activations(*args)

    monkeypatch.setattr(module, "mean_activations", read_two)
    with pytest.raises(KeyboardInterrupt):
        extract_activations(**shard | {"tokens_per_batch": 1})
    monkeypatch.undo()
    one_by_one = []
    monkeypatch.setattr(
        module,
        "mean_activations",
        lambda *args: one_by_one.append(args) or mean_activations(*args),
    )
    extract_activations(**shard | {"tokens_per_batch": 1})
    assert len(read) + len(one_by_one) == len(TEXTS)  # none twice
    found = load_activations(shard["activations_path"])
    assert found["rollout_id"] == expected["rollout_id"]
    assert torch.allclose(found["activations"].float(), expected["activations"].float(), rtol=2**-7)


def test_a_torn_line_of_the_list_is_cut_off_before_the_next_is_written(tmp_path):
    path = tmp_path / "key.done"
    path.write_text("3\n0\n12")
    with _Checkpoint(tmp_path, "key", (46, 1, 2)) as checkpoint:
        assert checkpoint.done == {0, 3}
        checkpoint.save([45], torch.ones(1, 1, 2))
    assert path.read_text() == "3\n0\n45\n"


def test_a_disk_that_fills_up_while_extracting_is_one_clear_error(tmp_path):
    with _Checkpoint(tmp_path, "key", (2, 1, 2)) as checkpoint:
        checkpoint._open_list.close()
        checkpoint._open_list = Path("/dev/full").open("a")  # noqa: SIM115 (the checkpoint closes it)
        with pytest.raises(WriteError, match="No space left on device; make room"):
            checkpoint.save([0], torch.ones(1, 1, 2))


def test_a_checkpoint_of_other_responses_is_not_used(shard, monkeypatch):
    folder = shard["checkpoint_folder"] / "000"
    folder.mkdir(parents=True)
    (folder / "otherkey.done").write_text("0\n1\n2\n3\n")
    extract_activations(**shard)
    assert load_activations(shard["activations_path"])["activations"].float().abs().sum() > 0
    assert not folder.exists()


def test_nan_names_the_rollout_and_the_layer(shard, tiny_model, tmp_path):
    folder = save_broken_model(tiny_model, tmp_path / "broken")
    with pytest.raises(NonFiniteError, match=r"rollout ghost/0/.: the activation after layer 2 is"):
        extract_activations(**shard | {"model_path": str(folder)})
    assert not shard["activations_path"].exists()


def test_layers_that_do_not_exist_and_targets_that_were_not_kept():
    with pytest.raises(ModelError, match=r"layer 9: the model has 4 layers"):
        select_layers([0, 9], 4)
    assert target_layer("auto", [0, 2], 4) == 2
    with pytest.raises(ModelError, match=r"layer 2 \(model\.target_layer\) is not among"):
        target_layer("auto", [0, 1], 4)


def test_responses_table_reads_back(shard):
    assert read_table(shard["responses_path"])[0].schema.names == RESPONSES.names


def test_soft_capped_attention_is_not_left_out(tmp_path):
    """Gemma 2 with large weights: SDPA would give other numbers than the model's own attention."""
    folder = save_tiny_model(tmp_path / "gemma2", "gemma2")
    eager, sdpa = (
        transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=name
        )
        for name in ("eager", "sdpa")
    )
    for model in (eager, sdpa):
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.q_proj.weight.mul_(10)
    eager.save_pretrained(folder)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        expected = eager(ids).logits
        found = load_model(str(folder), dtype="float32")[0](ids).logits
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(sdpa(ids).logits, expected, atol=1e-2)
