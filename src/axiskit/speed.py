"""How fast a model runs, as a few numbers: of a GPU from its data sheet, or measured by a probe."""

from __future__ import annotations

from dataclasses import dataclass

from axiskit.config import Config
from axiskit.errors import ConfigError, did_you_mean
from axiskit.model_size import ModelSize

COMPUTE_SHARE = 0.4
"""Share of a GPU's arithmetic peak that reading reaches; assumed."""

BANDWIDTH_SHARE = 0.6
"""Share of its memory bandwidth that writing reaches; assumed."""

LAYER_SECONDS = 0.8e-3
"""What transformers needs at least to launch the kernels of a layer, in seconds; assumed."""

LOAD_BYTES_PER_SECOND = 1e9
"""At which weights come from the disk to a GPU; assumed."""

IMPORT_SECONDS = 15.0
"""What a job with torch and transformers takes to start on a machine with GPUs; assumed."""

VLLM_START_SECONDS = 90.0
"""What vLLM takes to compile and to capture graphs, beside loading; assumed."""

VLLM_ROWS = 256
"""Responses that vLLM decodes at once at most (its ``max_num_seqs``)."""

VLLM_OVERHEAD_BYTES = 2e9
"""What vLLM needs of each GPU beside weights and cache; assumed."""


@dataclass(frozen=True)
class Speed:
    """What one job does in what time, in seconds.

    Attributes:
        source: Where the numbers come from.
        import_s: Until a job without a model has imported what it needs.
        start_s: Until a job has its model loaded.
        step_s: A decoding step, whatever the rows of its batch.
        row_step_s: What each row adds to a step.
        read_s: A token read: in prompts, extraction, conversations.
        judge_s: A token read for its likelihood.
        core_share: What a probe got of its cores; much below 1 other work slowed it down.
        vllm_start_s: Until a job that generates with vLLM is ready; 0 where it was not probed.
        vllm_token_s: A token that vLLM writes, reading the prompts included; likewise.
    """

    source: str
    import_s: float
    start_s: float
    step_s: float
    row_step_s: float
    read_s: float
    judge_s: float
    core_share: float = 1.0
    vllm_start_s: float = 0.0
    vllm_token_s: float = 0.0


@dataclass(frozen=True)
class Hardware:
    """A GPU's data sheet.

    Attributes:
        memory_gb: Memory, GB.
        tflops: Arithmetic peak without sparsity, 1e12 operations a second, in 16 bits and in 32.
        bandwidth_gb: Memory bandwidth, GB a second.
    """

    memory_gb: float
    tflops: tuple[float, float]
    bandwidth_gb: float


HARDWARE = {
    "l4": Hardware(24, (121, 30), 300),
    "a10": Hardware(24, (125, 31), 600),
    "rtx4090": Hardware(24, (165, 83), 1008),
    "a100-40": Hardware(40, (312, 19.5), 1555),
    "l40s": Hardware(48, (362, 92), 864),
    "a100": Hardware(80, (312, 19.5), 2039),
    "h100": Hardware(80, (989, 67), 3350),
    "h200": Hardware(141, (989, 67), 4800),
}
"""Data sheets by name."""


def hardware_named(name: str) -> Hardware:
    """A GPU's data sheet.

    Raises:
        ConfigError: It is not listed.
    """
    if name.lower() not in HARDWARE:
        hint = did_you_mean(name.lower(), HARDWARE, "measure it (--probe)")
        raise ConfigError(f"--hardware {name}: one of {', '.join(HARDWARE)} needed; {hint}")
    return HARDWARE[name.lower()]


def profile_speed(
    name: str,
    size: ModelSize,
    config: Config,
    *,
    prompt_tokens: float,
    response_tokens: float,
) -> Speed:
    """The speed of a model by a GPU's data sheet: by arithmetic, bandwidth or launches.

    A model that transformers spreads over several GPUs runs on one of them after the other, so it
    is no faster. vLLM splits each layer: so many GPUs are taken to be so much faster.

    Args:
        name: In :data:`HARDWARE`.
        size: The model.
        config: Says how it runs.
        prompt_tokens: Mean tokens of a prompt.
        response_tokens: Mean tokens of a response.

    Raises:
        ConfigError: The GPU is not listed.
    """
    gpu = hardware_named(name)
    dtype, n_gpus = config.model.dtype, max(1, config.resources.gpus)
    peak = gpu.tflops[dtype == "float32"] * 1e12
    read_s = 2 * size.parameters / (peak * COMPUTE_SHARE)
    bandwidth = gpu.bandwidth_gb * 1e9 * BANDWIDTH_SHARE
    weights_s = size.weight_bytes(dtype) / bandwidth
    load_s = IMPORT_SECONDS + size.weight_bytes(dtype) / LOAD_BYTES_PER_SECOND
    row_step_s = max(
        (prompt_tokens + response_tokens / 2) * size.kv_bytes(dtype) / bandwidth, read_s
    )
    memory = gpu.memory_gb * 2**30 * config.generation.vllm.gpu_memory_utilization
    cache = n_gpus * (memory - VLLM_OVERHEAD_BYTES) - size.weight_bytes(dtype)
    fitting = cache / ((prompt_tokens + response_tokens) * size.kv_bytes(dtype))
    rows = max(1.0, min(config.generation.batch_size, VLLM_ROWS, fitting))
    prompt_s = read_s * prompt_tokens / response_tokens
    return Speed(
        source=f"data sheet of {name.lower()}, not measured",
        import_s=IMPORT_SECONDS,
        start_s=load_s,
        step_s=max(weights_s, size.n_layers * LAYER_SECONDS),
        row_step_s=row_step_s,
        read_s=read_s,
        judge_s=read_s,
        vllm_start_s=load_s + VLLM_START_SECONDS,
        vllm_token_s=(weights_s / rows + row_step_s + prompt_s) / n_gpus,
    )
