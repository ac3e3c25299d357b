"""Estimates against numbers worked out by hand, and against real weight files."""

import json
from dataclasses import replace

import pytest
from conftest import ARCHITECTURES, ROOT, save_tiny_model
from typer.testing import CliRunner

from axiskit.cli import NO_ROOM, app
from axiskit.config import read_config, validate_config
from axiskit.disk import _N_COMPONENTS, REST, check_room, free_bytes, needed_disk, stage_disk
from axiskit.errors import ConfigError, DiskError
from axiskit.estimate import (
    Memory,
    cpu_jobs_at_once,
    gpu_warning,
    job_memory,
    make_estimate,
    stage_seconds,
)
from axiskit.model_size import ModelSize, read_model_size
from axiskit.persona_space import N_COMPONENTS
from axiskit.roles import Role
from axiskit.speed import HARDWARE, Speed, profile_speed
from axiskit.workload import Lengths, plan_workload, stage_tokens

SIZE = ModelSize(
    n_layers=10,
    hidden_size=100,
    intermediate_size=400,
    vocab_size=1000,
    kv_size=40,
    parameters=1_000_000,
    weights_on_disk=2_000_000,
)
LENGTHS = Lengths(
    "by hand", bytes_per_token=4.0, template_tokens=10.0, neutral_tokens=12.0, response_share=0.5
)
SPEED = Speed("by hand", 1.0, 3.0, step_s=0.1, row_step_s=0.01, read_s=0.001, judge_s=0.002)


def a_role(name, kind, *instructions):
    return Role(
        name=name, kind=kind, group="g", description="It is.", instructions=list(instructions)
    )


ROLES = {
    "default": a_role("default", "default", "", "x" * 16),
    "poet": a_role("poet", "role", "p" * 40, "q" * 20),
    "tree": a_role("tree", "role", "t" * 40, "u" * 20),
}
QUESTIONS = ["a" * 8, "b" * 8]
SCRIPTS = [["s" * 40, "s" * 40], ["s" * 40]]


def a_config(**changes):
    values = {
        "model": {"name": "m", "path": "org/m"},
        "prompts_per_role": 2,
        "default_prompts": 2,
        "questions": {"count": 2},
        "generation": {"max_new_tokens": 20, "batch_size": 4},
        "conversations": {"max_new_tokens": 10},
        "vectors": {"min_responses": 1},
        "shards": 1,
    }
    return validate_config(values | changes)


def a_workload(config):
    return plan_workload(config, ROLES, QUESTIONS, SCRIPTS)


def test_rollouts_and_lengths_are_counted():
    workload = a_workload(a_config())
    assert workload.rollouts == {"default": 4, "role": 8}
    assert (workload.n_rollouts, workload.judged, workload.n_vectors) == (12, 8, 3)
    assert workload.shards == (12,)
    assert workload.prompt_bytes == (2 * (0 + 16) + 2 * (40 + 20) * 2) / 12 + 8
    assert workload.longest_prompt_bytes == 48
    assert sum(a_workload(a_config(shards=5)).shards) == 12


def test_tokens_are_those_worked_out_by_hand():
    tokens = stage_tokens(a_config(), a_workload(a_config()), LENGTHS)
    prompt = (272 / 12 + 8) / 4 + 10
    assert tokens["generate_responses"] == pytest.approx((12 * prompt, 12 * 10))
    assert tokens["extract_activations"] == pytest.approx((12 * (prompt + 10), 0))
    assert tokens["judge_responses"] == pytest.approx((8 * (8 / 4 + 12 + 10), 0))
    # two turns of 20 tokens, answers of 5: 20 are read, then 20 + 5 + 20; and 20 of the other one
    assert tokens["hold_conversation"] == pytest.approx((3 * (20 + 45 + 20), 3 * 3 * 5))
    assert tokens["project_conversations"] == pytest.approx((3 * (50 + 25), 0))


def test_seconds_count_starts_batches_rows_and_tokens():
    config = a_config()
    seconds = stage_seconds(config, a_workload(config), LENGTHS, SPEED, bytes_read=1e9)
    prompt = (272 / 12 + 8) / 4 + 10
    # three batches of four rows, each of 20 steps: the longest response decides
    assert seconds["generate_responses"] == pytest.approx(
        3 + 12 * prompt * 0.001 + 20 * (3 * 0.1 + 12 * 0.01)
    )
    assert seconds["extract_activations"] == pytest.approx(3 + 12 * (prompt + 10) * 0.001)
    assert seconds["judge_responses"] == pytest.approx(3 + 8 * 24 * 0.002)
    assert seconds["hold_conversation"] == pytest.approx(
        3 * (3 + 85 * 0.001 + 10 * (2 * 0.1 + 3 * 0.01))
    )
    assert seconds["project_conversations"] == pytest.approx(3 + 225 * 0.001)
    assert seconds[REST] == pytest.approx(11 * 1 + 2)
    found = make_estimate(config, a_workload(config), SIZE, lengths=LENGTHS, speed=SPEED)
    by_name = {stage.name: stage for stage in found.stages}
    assert by_name["extract_activations"].gpu_hours == pytest.approx(
        seconds["extract_activations"] / 3600
    )
    assert by_name[REST].gpu_hours == 0
    assert found.wall_s == pytest.approx(sum(stage.seconds for stage in found.stages))
    two = make_estimate(
        config, a_workload(config), SIZE, lengths=LENGTHS, speed=SPEED, jobs_at_once=2
    )
    alone = by_name["project_conversations"].seconds + by_name[REST].seconds
    assert two.wall_s == pytest.approx(alone + (found.wall_s - alone) / 2)


def test_vllm_takes_its_own_start_and_time_a_token():
    config = a_config(generation={"engine": "vllm", "max_new_tokens": 20, "batch_size": 4})
    speed = replace(SPEED, vllm_start_s=30.0, vllm_token_s=0.02)
    seconds = stage_seconds(config, a_workload(config), LENGTHS, speed, bytes_read=None)
    assert seconds["generate_responses"] == pytest.approx(30 + 12 * 10 * 0.02)
    others = stage_seconds(a_config(), a_workload(config), LENGTHS, speed, bytes_read=None)
    del seconds["generate_responses"], others["generate_responses"]
    assert seconds == others
    cached = job_memory(config, a_workload(config), SIZE, LENGTHS)  # one response at once will do
    assert cached.generating == (48 / 4 + 10 + 20) * 10 * 40 * 2 + 16 * 1000


def test_activations_take_two_bytes_a_number_and_a_checkpoint_beside_them():
    config = a_config(activations={"layers": [1, 2, 3]}, model={"name": "m", "path": "org/m"})
    workload = a_workload(config)
    disk = stage_disk(config, workload, SIZE, LENGTHS)
    assert disk["extract_activations"] == 12 * 3 * 100 * 2 + 30 * 12 + 3000
    needed = needed_disk(config, workload, SIZE, LENGTHS, jobs_at_once=2)
    assert needed["extract_activations"] == disk["extract_activations"] + 12 * 3 * 100 * 2
    assert needed_disk(config, workload, None).keys() == {
        *("generate_responses", "judge_responses", "hold_conversation"),
    }


def test_memory_is_weights_and_the_worst_of_cache_and_batch():
    config = a_config(activations={"tokens_per_batch": 1000})
    memory = job_memory(config, a_workload(config), SIZE, LENGTHS)
    assert memory.weights == 2_000_000
    assert memory.generating == 4 * ((48 / 4 + 10 + 20) * 10 * 40 * 2 + 16 * 1000)
    logits, hidden = 1000 * 1000 * 2, 1000 * (4 * 100 + 3 * 400) * 2
    assert memory.reading == logits + hidden + 1000 * 100 * 4
    large = Memory(weights=140e9, generating=20e9, reading=5e9)
    assert [large.gpus_needed(gb) for gb in (24, 40, 80, 141)] == [7, 5, 3, 2]


def test_too_few_gpus_are_told():
    memory = Memory(weights=140e9, generating=20e9, reading=5e9)
    config = a_config(resources={"gpus": 2})
    warning = gpu_warning(config, memory, "h100")
    assert warning is not None
    assert warning.startswith("resources.gpus: 2 of 80 GB, 3 needed for 161 GB")
    assert gpu_warning(a_config(resources={"gpus": 3}), memory, "h100") is None


@pytest.mark.parametrize(("backend", "share"), [("anthropic", 1.0), ("anthropic-batch", 0.5)])
def test_a_hosted_judge_costs_what_its_tokens_cost(backend, share):
    judge = {"backend": backend, "model": "j", "prices": {"j": [3.0, 15.0]}}
    config = a_config(judge=judge)
    workload = a_workload(config)
    found = make_estimate(config, workload, SIZE, lengths=LENGTHS)
    n_bytes = round(workload.judge_prompt_bytes + 10 * 4)
    assert n_bytes > 500
    tokens_in = 8 * (n_bytes // 3 + 10)
    assert found.judge_usd == pytest.approx(share * (tokens_in * 3 + 8 * 16 * 15) / 1e6)
    assert make_estimate(a_config(), workload, SIZE).judge_usd == 0


def of_a_data_sheet(name, size, gpus=1, **generation):
    config = a_config(
        model={"name": "m", "path": "org/m", "dtype": "bfloat16"},
        resources={"gpus": gpus},
        generation={"batch_size": 64, **generation},
    )
    return profile_speed(name, size, config, prompt_tokens=50, response_tokens=100)


def test_a_gpu_is_bound_by_what_is_slowest():
    large = replace(SIZE, parameters=70_000_000_000, n_layers=80)
    speed = of_a_data_sheet("h100", large)
    assert speed.read_s == pytest.approx(2 * 70e9 / (989e12 * 0.4))
    assert speed.step_s == pytest.approx(140e9 / (3350e9 * 0.6))  # bandwidth
    assert of_a_data_sheet("h100", SIZE).step_s == pytest.approx(10 * 0.8e-3)
    with pytest.raises(ConfigError, match=r"--hardware h10: one of .* needed; did you mean 'h100'"):
        of_a_data_sheet("h10", SIZE)
    assert all(gpu.memory_gb >= 24 for gpu in HARDWARE.values())


def test_vllm_shares_a_step_among_its_rows_and_a_layer_among_gpus():
    large = replace(SIZE, parameters=30_000_000_000, n_layers=80)
    weights_s = 60e9 / (3350e9 * 0.6)
    speed = of_a_data_sheet("h100", large)
    each = weights_s / 64 + speed.row_step_s + speed.read_s * 50 / 100
    assert speed.vllm_token_s == pytest.approx(each)
    assert of_a_data_sheet("h100", large, gpus=4).vllm_token_s == pytest.approx(each / 4)
    many = of_a_data_sheet("h100", large, batch_size=10_000)  # vLLM decodes 256 at once
    assert many.vllm_token_s == pytest.approx(each - weights_s * (1 / 64 - 1 / 256))
    wide = replace(large, kv_size=80_000)  # few responses fit beside the weights
    speed = of_a_data_sheet("h100", wide)
    rows = (80 * 2**30 * 0.9 - 2e9 - 60e9) / (150 * 80 * 80_000 * 2)
    assert 1 < rows < 10
    assert speed.vllm_token_s == pytest.approx(
        weights_s / rows + speed.row_step_s + speed.read_s * 50 / 100
    )


def test_a_cpu_is_shared_as_the_workflow_shares_it():
    assert cpu_jobs_at_once(3, 2) == (1, 2)
    assert cpu_jobs_at_once(3, 8) == (2, 3)
    assert cpu_jobs_at_once(1, 8) == (8, 1)


def test_components_are_those_of_persona_space():
    assert _N_COMPONENTS == N_COMPONENTS


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gpt2", "gpt_neox"}))
def test_parameters_from_a_config_alone_are_close_to_those_in_the_weights(tmp_path, architecture):
    folder = save_tiny_model(tmp_path / "model", architecture)
    whole = read_model_size(folder)
    assert whole is not None
    assert (whole.n_layers, whole.hidden_size) == (4, 32)
    assert whole.weights_on_disk == (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").unlink()
    alone = read_model_size(folder)
    assert alone is not None
    assert alone.weights_on_disk == 0
    if architecture != "gemma3_multimodal":  # the vision tower is in the weights alone
        assert alone.parameters == pytest.approx(whole.parameters, rel=0.05)


def test_what_is_no_model_has_no_size(tmp_path):
    assert read_model_size(tmp_path) is None
    assert read_model_size(tmp_path / "nowhere" / "at" / "all") is None
    assert read_model_size("org/never-downloaded") is None
    (tmp_path / "config.json").write_text('{"model_type": "odd"}')
    assert read_model_size(tmp_path) is None


def test_room_counts_what_lies_there_already(tmp_path):
    folder = tmp_path / "results" / "m"
    (folder / "activations").mkdir(parents=True)
    needed = {"extract_activations": free_bytes(tmp_path) + 1e9}
    with pytest.raises(DiskError, match=r"free, .* needed \(.* of it by extract_activations\)"):
        check_room(folder, needed)
    with open(folder / "activations" / "000.pt", "wb") as file:
        file.truncate(2**31)  # sparse: it takes no room, and counts as two gigabytes
    check_room(folder, needed)
    check_room(tmp_path / "not" / "there" / "yet", {"generate_responses": 1.0})


def test_files_are_laid_over_each_other_as_snakemake_does_it(tmp_path):
    over, more = tmp_path / "over.yaml", tmp_path / "more.yaml"
    over.write_text("questions: {count: 3}\nactivations: {layers: [1, 2]}\nshards: 2\n")
    more.write_text("activations: {layers: [5]}\n")
    config = read_config([ROOT / "config" / "config.yaml", over, more])
    assert (config.questions.count, config.shards, config.activations.layers) == (3, 2, [5])
    assert config.activations.tokens_per_batch == 2048
    over.write_text("questions: {cuont: 3}\n")
    with pytest.raises(ConfigError, match=r"over\.yaml: questions\.cuont: unknown key"):
        read_config([ROOT / "config" / "config.yaml", over])
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        read_config([tmp_path / "nowhere.yaml"])


def test_the_command_says_what_is_known_and_what_is_not(tmp_path):
    found = CliRunner().invoke(app, ["estimate", "--directory", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["workload"]["rollouts"] == {"role": 288, "default": 30}
    assert report["size"] is None
    assert report["disk"] is None
    assert report["judge_usd"] == 0
    assert "unknown; --probe or --hardware tells it" in found.stderr
    table = CliRunner().invoke(app, ["estimate", "-d", str(tmp_path)]).stdout
    assert "memory of a job: unknown" in table


def test_the_command_tells_a_full_disk_by_its_exit_code(tmp_path):
    model = {"num_hidden_layers": 10**5, "hidden_size": 10**8, "num_attention_heads": 8}
    model |= {"intermediate_size": 8, "vocab_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(model))
    arguments = ["estimate", "-d", str(tmp_path), "--model", str(tmp_path), "--hardware", "h200"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == NO_ROOM
    assert "GB needed" in found.stderr
    assert "activations.layers" in found.stderr
    assert "data sheet of h200, not measured" in found.stderr
    assert CliRunner().invoke(app, [*arguments, "--probe"]).exit_code == 2
