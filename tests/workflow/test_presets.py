"""The presets: each is a config, says what the paper says, and plans the jobs that it should."""

import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from axiskit.config import validate_config
from axiskit.models import MODEL_CONFIGS
from axiskit.roles import find_role_files
from axiskit.rollouts import shard_of

pytestmark = pytest.mark.workflow

PRESETS = sorted((ROOT / "config" / "presets").glob("*.yaml"))


def merged(path):
    """A preset laid over config.yaml, as Snakemake does it."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    for section, values in yaml.safe_load(path.read_text()).items():
        is_section = isinstance(values, dict) and section in config
        config[section] = config[section] | values if is_section else values
    return validate_config(config)


def test_the_presets_are_there():
    assert [path.stem for path in PRESETS] == [
        *("gemma-2-27b-it", "gemma-3-4b-it", "llama-3.1-8b-instruct", "llama-3.3-70b-instruct"),
        *("qwen3-0.6b", "qwen3-32b", "qwen3-8b"),
    ]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_published_layers(path):
    config = merged(path)
    published = MODEL_CONFIGS.get(config.model.path)
    assert config.model.name == path.stem
    if published is None:
        assert config.model.target_layer == "auto"
        assert config.capping.experiment == "auto"
    else:
        assert config.model.target_layer == published["target_layer"]
        assert config.capping.experiment == published.get("capping_experiment", "auto")
        assert (config.prompts_per_role, config.questions.count) == (5, 240)
        assert (config.generation.temperature, config.generation.top_p) == (0.7, 0.9)
        assert config.generation.max_new_tokens == 512
        assert config.generation.engine == "vllm"
    thinks = "Qwen3" in config.model.path
    assert config.model.chat_template_kwargs == ({"enable_thinking": False} if thinks else {})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_plans_its_jobs(path, tmp_path):
    config = merged(path)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--cores", "8"),
            *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)),
            *("--configfile", str(path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", run.stdout, re.M))
    names = find_role_files(ROOT / "resources" / "roles")
    shards = {shard_of(name, config.shards) for name in names}
    judging = "ask_judge" if config.judge.is_hosted else "judge_responses"
    for rule in ("generate_responses", judging, "extract_activations"):
        assert int(jobs[rule]) == len(shards), rule
    assert int(jobs["hold_conversation"]) == 3
    assert "fetch_model" not in jobs
