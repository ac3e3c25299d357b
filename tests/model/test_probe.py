"""The probe: a tiny model, run for real in processes of its own."""

import pytest
from conftest import ROOT

from axiskit.config import validate_config
from axiskit.errors import ModelError
from axiskit.estimate import make_estimate
from axiskit.model_size import read_model_size
from axiskit.probe import run_probe
from axiskit.questions import load_questions
from axiskit.roles import load_roles
from axiskit.rollouts import plan_rollouts
from axiskit.workload import plan_workload


def planned(model, **generation):
    """A small config, its rollouts and its workload."""
    config = validate_config(
        {
            "model": {"name": "tiny", "path": str(model), "dtype": "float32"},
            "roles": {"include": ["poet", "tree"]},
            "questions": {"count": 3},
            "prompts_per_role": 2,
            "default_prompts": 2,
            "generation": {"max_new_tokens": 12, "batch_size": 8, **generation},
            "vectors": {"min_responses": 1, "min_roles": 3},
        }
    )
    roles = load_roles(ROOT / "resources" / "roles", config.roles.include)
    questions = load_questions(ROOT / "resources" / "questions.jsonl", 3)
    rollouts = plan_rollouts(
        roles.values(),
        questions,
        prompts_per_role=2,
        default_prompts=2,
        model_name="tiny",
        seed=0,
    )
    return config, rollouts, plan_workload(config, roles, questions, [["a", "b"]])


def probe(config, path, rollouts, jobs_at_once):
    return run_probe(
        config,
        str(path),
        rollouts,
        neutral_prompt="",
        n_scripts=2,
        threads=1,
        jobs_at_once=jobs_at_once,
    )


def test_a_probe_measures_every_speed_and_the_lengths(tiny_model):
    config, rollouts, workload = planned(tiny_model)
    speed, lengths = probe(config, tiny_model, rollouts, 2)
    assert 0 < speed.import_s < speed.start_s
    assert speed.step_s + speed.row_step_s > 0
    assert speed.read_s > 0
    assert speed.judge_s > 0
    assert 0 < speed.core_share <= 1
    assert speed.vllm_start_s == speed.vllm_token_s == 0
    assert "2 at once" in speed.source
    assert lengths.bytes_per_token == pytest.approx(1)  # the tiny tokenizer's are bytes
    assert lengths.template_tokens > lengths.neutral_tokens > 10  # no system message around it
    assert 0 < lengths.response_share <= lengths.step_share <= 1
    found = make_estimate(
        config, workload, read_model_size(tiny_model), lengths=lengths, speed=speed
    )
    assert found.wall_s > 3 * speed.start_s
    assert found.disk > 0


def test_an_error_in_the_probe_is_that_of_the_job(tmp_path):
    config, rollouts, _ = planned(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"nowhere: .*\(model\.path\)"):
        probe(config, tmp_path / "nowhere", rollouts, 1)
