"""How large a model is, from its config.json and the heads of its weight files: nothing is loaded.

Light on purpose (no torch, no transformers): the Snakefile asks before the first job.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number in each ``model.dtype``."""


@dataclass(frozen=True)
class ModelSize:
    """The numbers that decide how much disk, memory and time a model takes.

    Attributes:
        kv_size: Numbers that a token leaves in the cache of one layer, keys and values together.
        parameters: Counted in the weight files; where these are missing, computed from the config
            for gated MLPs, within a few per cent.
        weights_on_disk: Bytes of the weight files; 0: they are not there.
    """

    n_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    kv_size: int
    parameters: int
    weights_on_disk: int

    def kv_bytes(self, dtype: str) -> int:
        """What one token takes in the key-value cache of all layers, in bytes."""
        return self.n_layers * self.kv_size * BYTES[dtype]

    def weight_bytes(self, dtype: str) -> int:
        """What the loaded weights take, in bytes."""
        return self.parameters * BYTES[dtype]


def read_model_size(
    path: str | Path, *, revision: str | None = None, download: bool = False
) -> ModelSize | None:
    """The size of the model in a folder, or of a Hugging Face id.

    Args:
        path: Folder or Hugging Face id.
        revision: Of an id.
        download: Fetch config.json of an id that is not in the cache; the weights stay where they
            are.

    Returns:
        None where there is no config.json to be had, or it names its sizes in a way of its own.
    """
    folder = Path(path) if Path(path).is_dir() else _cached_folder(str(path), revision, download)
    if folder is None or not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**config, **config.get("text_config", {})}
    weights = _weight_files(folder)
    try:
        heads = config["num_attention_heads"]
        head_size = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
        counted = sum(map(_parameters_in, weights))
        return ModelSize(
            n_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            kv_size=2 * kv_heads * head_size,
            parameters=counted or _parameters_of(config, heads * head_size, kv_heads * head_size),
            weights_on_disk=sum(file.stat().st_size for file in weights),
        )
    except KeyError:
        return None


def _cached_folder(model_id: str, revision: str | None, download: bool) -> Path | None:
    """Where the cache of Hugging Face keeps an id's files."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(model_id, "config.json", revision=revision)
        if not isinstance(found, str) and download:
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its attempts
            found = huggingface_hub.hf_hub_download(model_id, "config.json", revision=revision)
    except (HFValidationError, HfHubHTTPError, OSError):  # no id, no access, no network
        return None
    return Path(found).parent if isinstance(found, str) else None


def _weight_files(folder: Path) -> list[Path]:
    """The .safetensors files; none where some that the index names are missing."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    files = [folder / name for name in sorted(names)]
    return files if all(file.exists() for file in files) else []


def _parameters_in(file: Path) -> int:
    """Numbers in a .safetensors file, by its header: a length of eight bytes, then JSON."""
    with open(file, "rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header = json.loads(content.read(length))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )


def _parameters_of(config: Mapping[str, Any], query_size: int, kv_size: int) -> int:
    """Embedding, attention and gated MLPs (of all experts); norms and biases are left out."""
    hidden = config["hidden_size"]
    experts = config.get("num_experts") or config.get("num_local_experts")
    width = config["intermediate_size"]
    if experts:
        width = experts * (config.get("moe_intermediate_size") or width)
    embeddings = 1 if config.get("tie_word_embeddings") else 2
    layer = 2 * hidden * query_size + 2 * hidden * kv_size + 3 * hidden * width
    return int(embeddings * config["vocab_size"] * hidden + config["num_hidden_layers"] * layer)
