"""The probe with the engine vllm."""

import pytest
from model.test_probe import planned, probe

# not "vllm" alone: that this folder would be, too
pytest.importorskip("vllm.entrypoints", reason="vLLM is not installed")
pytestmark = pytest.mark.vllm


def test_a_probe_measures_vllm_beside_transformers(wide_model, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    settings = {"gpu_memory_utilization": 0.2, "enforce_eager": True}
    config, rollouts, _ = planned(wide_model, engine="vllm", vllm=settings)
    speed, _ = probe(config, wide_model, rollouts, 1)
    assert speed.vllm_start_s > speed.import_s > 0
    assert speed.vllm_token_s > 0
    assert speed.start_s > speed.import_s
    assert speed.step_s + speed.row_step_s > 0
