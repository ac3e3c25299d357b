"""Fixtures: tiny chat models of real architectures, made from their config classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: cores are shared
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import hypothesis
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).parents[1]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<bos>"]
HIDDEN = 32
N_LAYERS = 4
_SIZES = {
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "bos_token_id": 259,
    "eos_token_id": 258,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, **_GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES, **_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, **_GROUPED),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, **_GROUPED, sliding_window=16),
    "olmo2": lambda: transformers.Olmo2Config(**_SIZES, num_key_value_heads=2),
    "phi3": lambda: transformers.Phi3Config(**_SIZES, num_key_value_heads=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, **_GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_SIZES, **_GROUPED, query_pre_attn_scalar=8, sliding_window=16
    ),
    "gemma3_multimodal": lambda: transformers.Gemma3Config(
        text_config={**_SIZES, **_GROUPED, "query_pre_attn_scalar": 8},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        eos_token_id=258,
    ),
    "gemma2": lambda: transformers.Gemma2Config(**_SIZES, **_GROUPED, query_pre_attn_scalar=8),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=_SIZES["vocab_size"],
        n_embd=HIDDEN,
        n_layer=N_LAYERS,
        n_head=4,
        bos_token_id=259,
        eos_token_id=258,
    ),
}


def tiny_tokenizer(chat_template: str | None = CHATML) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: i for i, sign in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        bos_token="<bos>",
        chat_template=chat_template,
    )


def save_tiny_model(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """A random chat model, large enough weights to have something to say."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[architecture]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_facts(path: str) -> dict[str, Any]:
    """What a result says about the tiny model that made it."""
    # not above: the shapes in its annotations are checked only if pytest is set up before
    from axiskit.models import load_tokenizer, model_fingerprint, model_metadata

    return model_metadata(
        load_tokenizer(path),
        name="tiny",
        path=path,
        revision=None,
        fingerprint=model_fingerprint(path),
        dtype="float32",
        chat_template_kwargs={},
    )


def save_broken_model(tiny_model: str, folder: Path) -> Path:
    """The same model with one NaN in a weight of block 2."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random Llama with a ChatML template."""
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny") / "llama"))


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random model, one architecture after the other."""
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny") / request.param, request.param))


hypothesis.settings.register_profile("axiskit", deadline=None, max_examples=50)
hypothesis.settings.load_profile("axiskit")
