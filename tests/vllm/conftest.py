"""Models that vLLM runs on a CPU: its attention needs wider heads than other tests use."""

import shutil

import pytest
import torch
import transformers
import yaml
from conftest import ARCHITECTURES, ROOT, tiny_tokenizer

from axiskit.models import fetch_model


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory):
    """Folder of a tiny random Llama with heads of 64."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    torch.manual_seed(0)
    sizes = ARCHITECTURES["llama"]().to_dict() | {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
    }
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig.from_dict(sizes))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_model(tmp_path_factory):
    """Folder of the default config's model: a copy of what `make axis` fetched, or fetched here."""
    model = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["model"]
    folder = tmp_path_factory.mktemp("embedded") / "model"
    fetched = ROOT / "results" / model["name"] / "model"
    if fetched.is_dir():
        shutil.copytree(fetched, folder)
    else:
        fetch_model(model["path"], folder)
    return folder
