"""How fast this machine runs a config's model, measured on a small sample of its own rollouts.

The sample is generated, read and judged by the functions that the workflow calls, with as many
threads and as many jobs at once. It takes up to about two minutes, and what the model takes to
load: what does not fit is cut short. With the engine vllm it is generated twice, as conversations
are held with transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from statistics import fmean
from typing import Any

from axiskit import errors
from axiskit.config import Config, validate_config
from axiskit.errors import AxiskitError, ModelError
from axiskit.rollouts import Rollout
from axiskit.speed import VLLM_ROWS, Speed
from axiskit.workload import Lengths

GENERATE_SECONDS = 50.0
"""What generating a full batch may take; the tokens are made fewer, or the rows."""

READ_SECONDS = 8.0
"""What each way of reading may take; one batch may take longer."""


def run_probe(
    config: Config,
    model_path: str,
    rollouts: Sequence[Rollout],
    *,
    neutral_prompt: str,
    n_scripts: int,
    threads: int | None,
    jobs_at_once: int,
) -> tuple[Speed, Lengths]:
    """Measure speed, and the lengths of prompts and responses.

    Args:
        config: The config.
        model_path: Hugging Face id or folder.
        rollouts: All that the config asks for. A sample as large as a batch is taken evenly; for
            vLLM two that follow each other, since it reads once what neighbours have in common.
        neutral_prompt: What a judge by likelihood compares with.
        n_scripts: Conversations that are held side by side.
        threads: Of each job; None: as torch wants it (a GPU).
        jobs_at_once: Processes that measure side by side, as jobs would run.

    Returns:
        Means over the processes.

    Raises:
        ModelError, TemplateError, OutOfMemoryError: The model cannot be loaded or run.
    """
    n_rows = min(config.generation.batch_size, len(rollouts))
    sample = [rollouts[i * len(rollouts) // n_rows] for i in range(n_rows)]
    job = {"config": config.model_dump(), "model_path": model_path}
    found = _in_processes(
        jobs_at_once,
        {
            **job,
            "engine": "transformers",
            "sample": [asdict(rollout) for rollout in sample],
            "neutral_prompt": neutral_prompt,
            "n_scripts": max(1, n_scripts),
            "threads": threads,
        },
    )
    speeds = [one["speed"] for one in found]
    jobs = f"{jobs_at_once} at once" if jobs_at_once > 1 else "one at a time"
    source = f"probe: jobs of {threads} threads, {jobs}" if threads else "probe on a GPU"
    if config.generation.engine == "vllm":
        n_rows = min(n_rows, VLLM_ROWS)  # more would wait for these
        middle = max(0, len(rollouts) // 2 - n_rows)
        neighbours = [asdict(rollout) for rollout in rollouts[middle : middle + 2 * n_rows]]
        with_vllm = _in_processes(jobs_at_once, {**job, "engine": "vllm", "sample": neighbours})
        speeds = [{**one, **other} for one, other in zip(speeds, with_vllm, strict=True)]
    means = {name: fmean(speed[name] for speed in speeds) for name in speeds[0]}
    return Speed(source, **means), Lengths(**found[0]["lengths"])


def _in_processes(jobs_at_once: int, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each of so many processes measured, side by side."""
    processes = []
    for _ in range(jobs_at_once):
        process = subprocess.Popen(
            [sys.executable, "-c", "from axiskit.probe import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append((process, json.dumps({**job, "started": time.time()})))
    with ThreadPoolExecutor(jobs_at_once) as pool:
        return list(pool.map(lambda one: _result(*one), processes))


def _result(process: subprocess.Popen[str], job: str) -> dict[str, Any]:
    """What a process measured; its error, raised here."""
    try:
        out, text = process.communicate(job)
    except BaseException:
        process.kill()
        raise
    if process.returncode == 0:
        return dict(json.loads(out))
    last = (text.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
    name, _, message = last.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, AxiskitError):
        raise kind(message)
    raise ModelError(f"{json.loads(job)['model_path']}: the probe (--probe) failed: {last}")


def main() -> None:
    """Measure in a process of its own: a job as JSON on stdin, what was found as JSON on stdout."""
    job = json.load(sys.stdin)
    job["config"] = validate_config(job["config"])
    job["sample"] = [Rollout(**row) for row in job["sample"]]
    measure = _measure_vllm if job.pop("engine") == "vllm" else _measure
    with open(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # libraries may print
        try:
            found = measure(**job)
        except AxiskitError as error:
            sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
        json.dump(found, out)


def _measure(
    started: float,
    config: Config,
    model_path: str,
    sample: Sequence[Rollout],
    neutral_prompt: str,
    n_scripts: int,
    threads: int | None,
) -> dict[str, Any]:
    """One job's numbers of :class:`Speed`, counted from ``started``; and the sample's lengths."""
    import torch

    from axiskit import vectors  # noqa: F401  (one of the jobs without a model)

    import_s = time.time() - started

    from axiskit.activations import encode_response, mean_activations
    from axiskit.layers import decoder_blocks, select_layers
    from axiskit.likelihood import log_likelihoods
    from axiskit.models import load_model

    if threads:
        torch.set_num_threads(threads)
    kwargs = config.model.chat_template_kwargs
    model, tokenizer = load_model(
        model_path,
        revision=config.model.revision,
        dtype=config.model.dtype,
        chat_template_kwargs=kwargs,
    )
    start_s = time.time() - started

    prompts = _prompts(tokenizer, sample, config)
    step_s, row_step_s, answers, steps = _generating(
        model, tokenizer, prompts, sample, config, n_scripts
    )
    layers = select_layers(config.activations.layers, len(decoder_blocks(model)))
    read = [
        encode_response(
            tokenizer, rollout.system_prompt, rollout.question, row["response"], **kwargs
        )
        for rollout, row in zip(sample, answers, strict=True)
    ]
    judged = [
        encode_response(tokenizer, neutral_prompt, rollout.question, row["response"], **kwargs)
        for rollout, row in zip(sample, answers, strict=True)
    ]
    budget = config.activations.tokens_per_batch
    read_s = _seconds_a_token(
        read,
        budget,
        lambda t, m: mean_activations(model, t, m, layers, tokenizer.pad_token_id),
    )
    judge_s = 0.0
    if not config.judge.is_hosted:
        judge_s = _seconds_a_token(judged, budget, lambda t, m: log_likelihoods(model, t, m))
    speed = {
        "import_s": import_s,
        "start_s": start_s,
        "step_s": step_s,
        "row_step_s": row_step_s,
        "read_s": read_s,
        "judge_s": judge_s,
        "core_share": _core_share(started, threads),
    }
    neutral = [len(tokens) - sum(mask) for tokens, mask in judged]
    lengths = _lengths(tokenizer, prompts, neutral, sample, answers, steps, config)
    return {"speed": speed, "lengths": asdict(lengths)}


def _measure_vllm(
    started: float, config: Config, model_path: str, sample: Sequence[Rollout]
) -> dict[str, float]:
    """One job's ``vllm_`` numbers of :class:`Speed`: half of the sample warms up, half counts."""
    from axiskit import vllm_engine
    from axiskit.models import load_tokenizer, read_stop_token_ids

    revision, kwargs = config.model.revision, config.model.chat_template_kwargs
    tokenizer = load_tokenizer(model_path, revision=revision)
    prompts = _prompts(tokenizer, sample, config)
    stops = read_stop_token_ids(model_path, tokenizer, revision=revision, **kwargs)
    most = config.generation.max_new_tokens
    llm = vllm_engine.load_llm(
        model_path,
        revision=revision,
        dtype=config.model.dtype,
        max_tokens=max(map(len, prompts)) + most,
        n_gpus=max(1, config.resources.gpus),
        **config.generation.vllm.model_dump(),
    )
    vllm_start_s = time.time() - started

    def generate(part: slice, n_tokens: int) -> tuple[float, int]:
        """Seconds, and tokens written."""
        start = time.perf_counter()
        answers = vllm_engine.sample(
            llm,
            prompts[part],
            seeds=[rollout.seed for rollout in sample[part]],
            names=[rollout.rollout_id for rollout in sample[part]],
            stop_token_ids=stops,
            temperature=config.generation.temperature,
            top_p=config.generation.top_p,
            max_new_tokens=n_tokens,
        )
        return time.perf_counter() - start, sum(len(answer.tokens) for answer in answers)

    half = max(1, len(sample) // 2)
    few = min(8, most)
    generate(slice(half), few)  # the first call is slower than any later one
    step_s = generate(slice(half), few)[0] / few
    n_tokens = min(most, max(few, int(GENERATE_SECONDS / step_s)))
    seconds, written = generate(slice(half, None) if len(sample) > 1 else slice(half), n_tokens)
    return {"vllm_start_s": vllm_start_s, "vllm_token_s": seconds / written}


def _prompts(tokenizer: Any, sample: Sequence[Rollout], config: Config) -> list[list[int]]:
    """Token ids of each rollout's prompt."""
    from axiskit.generation import rollout_prompt

    return [
        tokenizer(
            rollout_prompt(tokenizer, rollout, **config.model.chat_template_kwargs),
            add_special_tokens=False,
        ).input_ids
        for rollout in sample
    ]


def _core_share(started: float, threads: int | None) -> float:
    """Of the threads' time the part that they ran; 1 where they wait for a GPU."""
    return min(1.0, time.process_time() / (time.time() - started) / threads) if threads else 1.0


def _generating(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sample: Sequence[Rollout],
    config: Config,
    n_scripts: int,
) -> tuple[float, float, list[dict[str, Any]], int]:
    """Seconds of a step and of each of its rows, from two batches; the larger one's responses."""
    from axiskit.generation import sample_responses

    def generate(rows: int, n_tokens: int) -> tuple[float, list[dict[str, Any]]]:
        start = time.perf_counter()
        answers = sample_responses(
            model,
            tokenizer,
            prompts[:rows],
            seeds=[rollout.seed for rollout in sample[:rows]],
            names=[rollout.rollout_id for rollout in sample[:rows]],
            temperature=config.generation.temperature,
            top_p=config.generation.top_p,
            max_new_tokens=n_tokens,
        )
        return time.perf_counter() - start, answers

    few = min(n_scripts, len(prompts))
    most = config.generation.max_new_tokens
    generate(few, 1)  # the first call is slower than any later one
    first_few = generate(few, 1)[0]
    few_step = _step_seconds(generate(few, min(9, most)), first_few)
    rows = len(prompts)
    per_row = max(few_step, first_few) / few
    while rows > few and rows * per_row * 4 > GENERATE_SECONDS:  # on a CPU rows add up
        rows //= 2
    first = generate(rows, 1)[0]
    step = _step_seconds(generate(rows, min(4, most)), first)
    n_tokens = min(most, max(4, int((GENERATE_SECONDS - first) / max(step, 1e-9))))
    full = generate(rows, n_tokens)
    step = _step_seconds(full, first)
    row_step_s = max(0.0, step - few_step) / (rows - few) if rows > few else step / rows
    step_s = max(0.0, step - rows * row_step_s)
    answers = full[1] + [full[1][i % rows] for i in range(len(prompts) - rows)]
    return step_s, row_step_s, answers, n_tokens


def _step_seconds(run: tuple[float, list[dict[str, Any]]], first: float) -> float:
    """Mean of the steps after the first, which reads the prompts, too."""
    seconds, answers = run
    steps = max(_steps_of(row) for row in answers)
    return max(0.0, seconds - first) / (steps - 1) if steps > 1 else first


def _steps_of(row: Mapping[str, Any]) -> int:
    return int(row["n_tokens"]) + int(row["finish_reason"] == "stop")


def _seconds_a_token(
    texts: Sequence[tuple[list[int], list[bool]]],
    tokens_per_batch: int,
    compute: Callable[[Any, Any], object],
) -> float:
    """Of length-sorted batches, until the time is up; the shortest text comes first, to warm up."""
    from axiskit.batching import length_sorted_batches, run_halving

    texts = [(tokens, mask) for tokens, mask in texts if any(mask)]
    if not texts:
        return 0.0
    batches = length_sorted_batches(
        [len(tokens) for tokens, _ in texts], max_tokens=tokens_per_batch
    )

    def run(batch: list[int]) -> tuple[float, int]:
        start = time.perf_counter()
        compute([texts[i][0] for i in batch], [texts[i][1] for i in batch])
        return time.perf_counter() - start, sum(len(texts[i][0]) for i in batch)

    run(batches[-1][-1:])
    seconds, tokens = 0.0, 0
    for _, (took, read) in run_halving(batches, run):
        seconds, tokens = seconds + took, tokens + read
        if seconds > READ_SECONDS:
            break
    return seconds / tokens


def _lengths(
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    neutral: Sequence[int],
    sample: Sequence[Rollout],
    answers: Sequence[Mapping[str, Any]],
    n_tokens: int,
    config: Config,
) -> Lengths:
    """Lengths of the sample. Responses that were cut short say nothing about their length."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    texts = [rollout.system_prompt + rollout.question for rollout in sample]
    plain = list(map(count, texts))
    most = config.generation.max_new_tokens
    is_cut = n_tokens < most and any(row["finish_reason"] == "length" for row in answers)
    response_share = 1.0 if is_cut else fmean(row["n_tokens"] for row in answers) / most
    n_bytes = sum(len(text.encode()) for text in texts)
    assumed = Lengths()
    return Lengths(
        source=(
            f"prompts as in a sample of {len(sample)}, responses as long as max_new_tokens allows"
            if is_cut
            else f"as in a sample of {len(sample)} rollouts"
        ),
        bytes_per_token=n_bytes / sum(plain) if sum(plain) else assumed.bytes_per_token,
        template_tokens=fmean(map(len, prompts)) - fmean(plain),
        neutral_tokens=fmean(neutral) - fmean(count(rollout.question) for rollout in sample),
        response_share=response_share,
        step_share=1.0 if is_cut else max(map(_steps_of, answers)) / most,
    )
