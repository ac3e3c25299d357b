"""The engine vllm, with the real vLLM on a CPU: same table, same greedy texts, nothing twice."""

import json
import math
import shutil

import pytest
import torch
import transformers
from conftest import ROOT
from workflow.test_workflow import edit_config, journal_keys, kill_after, make_project, snakemake

from axiskit.artifacts import read_table
from axiskit.errors import ModelError, NonFiniteError
from axiskit.generation import RESPONSES, generate_responses
from axiskit.likelihood import log_likelihoods
from axiskit.models import load_model, load_tokenizer, read_stop_token_ids
from axiskit.rollouts import digest
from axiskit.templates import chat_messages, render_prompt
from axiskit.vllm_engine import load_llm, sample, version

# not "vllm" alone: that this folder would be, too
pytest.importorskip("vllm.entrypoints", reason="vLLM is not installed")
pytestmark = pytest.mark.vllm

VLLM = {"gpu_memory_utilization": 0.2, "enforce_eager": True}


@pytest.fixture(autouse=True, scope="module")
def small_cache():
    """Memory for attention's keys and values, in GiB; without it a share of all memory is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


def test_greedy_responses_are_those_of_transformers(embedded_model, tmp_path):
    settings = {
        "role_paths": [
            ROOT / "resources" / "roles" / f"{name}.yaml"
            for name in ("default", "lawyer", "pirate", "void")
        ],
        "questions_path": ROOT / "resources" / "questions.jsonl",
        "journal_folder": tmp_path / "journal",
        "shard": "000",
        "name": "embedded",
        "display_name": "SmolLM2",
        "model_path": str(embedded_model),
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
        "n_questions": 4,
        "prompts_per_role": 1,
        "default_prompts": 1,
        "temperature": 0.0,
        "top_p": 0.9,
        "max_new_tokens": 32,
        "seed": 0,
        "batch_size": 16,
        "n_gpus": 0,
        "vllm": VLLM,
        "layers": "all",
        "target_layer_setting": "auto",
    }
    tables = {}
    for engine in ("transformers", "vllm", "vllm"):  # the third time all rows are in the journal
        path = tmp_path / f"{engine}.parquet"
        generate_responses(engine=engine, responses_path=path, **settings)
        table, metadata = read_table(path)
        assert table.schema.remove_metadata() == RESPONSES
        assert metadata["stages"]["generate_responses"]["engine"] == engine
        assert metadata["versions"].get("vllm") == (version() if engine == "vllm" else None)
        tables[engine] = table.to_pylist()
    keys = [
        json.loads(line)["key"]
        for path in (tmp_path / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(keys) == len(set(keys)) == 32  # no engine takes the other's rows for its own
    with pytest.raises(ModelError, match=r"and 9000 of response .*, the model reads 8192"):
        settings["max_new_tokens"] = 9000
        generate_responses(engine="vllm", responses_path=path, **settings)
    assert len({row["response"] for row in tables["vllm"]}) == 16
    for row, expected in zip(tables["vllm"], tables["transformers"], strict=True):
        assert row.pop("log_likelihood") == pytest.approx(
            expected.pop("log_likelihood"), abs=1e-2, rel=1e-4
        )
        assert row == expected


SAMPLING = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 64}


def load(model, dtype="float32"):
    settings = {"revision": None, "dtype": dtype, "max_tokens": 512, "n_gpus": 1}
    return load_llm(str(model), **settings, **VLLM)


def stops_of(model):
    return read_stop_token_ids(str(model), load_tokenizer(str(model)))


def test_a_seed_gives_one_text_whatever_the_batch_and_the_order(wide_model):
    n = 24
    model, tokenizer = load_model(str(wide_model), dtype="float32")
    prompts = [tokenizer("q" * (1 + 7 * i % 40)).input_ids for i in range(n)]
    seeds = [int(digest(i)[:16], 16) >> 1 for i in range(n)]
    order = [*range(n), *reversed(range(n)), 7]  # each in two batches; one alone, at the end
    found = {i: [] for i in range(n)}
    llm = load(wide_model)
    for start in range(0, len(order), 16):
        batch = order[start : start + 16]
        answers = sample(
            llm,
            [prompts[i] for i in batch],
            seeds=[seeds[i] for i in batch],
            names=list(map(str, batch)),
            stop_token_ids=stops_of(wide_model),
            **SAMPLING,
        )
        for i, answer in zip(batch, answers, strict=True):
            found[i].append(answer)
    assert [len(answers) for answers in found.values()] == [3 if i == 7 else 2 for i in range(n)]
    for i, (first, *others) in found.items():
        assert all(other.tokens == first.tokens for other in others), i
    assert len({tuple(answers[0].tokens) for answers in found.values()}) == n
    lengths = {len(answers[0].tokens) for answers in found.values()}
    assert max(lengths) == 64 > min(lengths)
    for i, (answer, *_) in found.items():  # at temperature 1, top_p not applied
        assert (answer.tokens[-1] in tokenizer.all_special_ids) == (len(answer.tokens) < 64)
        mask = [False] * len(prompts[i]) + [True] * len(answer.tokens)
        expected = log_likelihoods(model, [prompts[i] + answer.tokens], [mask])[0]
        assert math.fsum(answer.log_likelihoods) == pytest.approx(float(expected), abs=1e-3)


def test_nan_in_a_weight_and_what_vllm_refuses_are_one_clear_error(wide_model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(wide_model, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    llm = load(folder)
    arguments = {"seeds": [0], "names": ["poet/0/0"], "stop_token_ids": [], **SAMPLING}
    with pytest.raises(NonFiniteError, match="rollout poet/0/0: the model's logits are NaN"):
        sample(llm, [[1, 2, 3]], **arguments)
    with pytest.raises(ModelError, match=r"vLLM cannot start with it: .*int4.*resources\.gpus"):
        load(folder, "int4")


def test_kill_9_in_a_workflow_then_the_same_command(wide_model, tmp_path):
    sampling = {**SAMPLING, "max_new_tokens": 8}
    folder = make_project(
        tmp_path / "torn",
        generation={"engine": "vllm", "batch_size": 4, "vllm": VLLM, **sampling},
    )
    edit_config(None, "shards", 1)(folder)
    shutil.rmtree(folder / "model")
    shutil.copytree(wide_model, folder / "model")
    kill_after(6, "generate_responses", folder, "responses/000.parquet")
    assert len(journal_keys(folder, "generate_responses")) == 6
    snakemake(folder, "--rerun-incomplete", "results/tiny/responses/000.parquet")
    table, metadata = read_table(folder / "results" / "tiny" / "responses" / "000.parquet")
    assert table.schema.remove_metadata() == RESPONSES
    assert metadata["stages"]["generate_responses"]["engine"] == "vllm"
    keys = journal_keys(folder, "generate_responses")
    assert len(keys) == len(set(keys)) == table.num_rows == 36

    # the same as without a kill, in one batch, whose prompts are more than vLLM reads in one step
    rows = table.to_pylist()
    tokenizer = load_tokenizer(str(wide_model))
    talks = [chat_messages(tokenizer, row["system_prompt"], row["question"]) for row in rows]
    answers = sample(
        load(wide_model),
        [tokenizer(render_prompt(tokenizer, talk)).input_ids for talk in talks],
        seeds=[row["seed"] for row in rows],
        names=[row["rollout_id"] for row in rows],
        stop_token_ids=stops_of(wide_model),
        **sampling,
    )
    for row, answer in zip(rows, answers, strict=True):
        assert row["response"] == tokenizer.decode(answer.tokens, skip_special_tokens=True)
        assert row["log_likelihood"] == pytest.approx(
            math.fsum(answer.log_likelihoods[: row["n_tokens"]]), abs=1e-3
        )
