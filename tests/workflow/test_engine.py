"""The engine vllm where vLLM is not installed: told before any work."""

import importlib.util

import pytest
from workflow.test_workflow import make_project, planned, snakemake

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        getattr(importlib.util.find_spec("vllm"), "origin", None) is not None,
        reason="vLLM is installed",
    ),
]


def test_a_missing_vllm_is_told_at_the_start_and_no_dry_run_needs_it(tmp_path):
    folder = make_project(tmp_path, generation={"engine": "vllm"})
    assert planned(folder)["generate_responses"] == 2
    run = snakemake(folder, check=False)
    assert run.returncode != 0
    assert (
        "ConfigError: generation.engine: the package vllm is not installed, it is needed to "
        "generate with vLLM; pip install 'axiskit[vllm]'" in run.stderr
    )
    assert "Traceback" not in run.stderr
    assert not list((folder / "results").rglob("*.log"))
