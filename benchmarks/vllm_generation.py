"""Generation with vLLM against transformers, as a ratio within one run.

    .venv-vllm/bin/python benchmarks/vllm_generation.py results/smollm2-135m-instruct/model

Needs a model folder and an environment with vLLM (`make test-vllm` makes one). Both engines sample
the same prompts, loaded and warm. Compare rows of one run only, machines differ.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import torch

from axiskit.generation import sample_responses
from axiskit.models import load_model, read_stop_token_ids
from axiskit.questions import load_questions
from axiskit.roles import load_roles
from axiskit.rollouts import plan_rollouts
from axiskit.templates import chat_messages, render_prompt
from axiskit.vllm_engine import sample_batches

N_ROLLOUTS, N_TOKENS = 64, 32
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": N_TOKENS}


def seconds_a_batch(counts: Iterable[int]) -> tuple[float, int]:
    """Time of the second of two equal batches, and its tokens: the first one warms up."""
    counts = iter(counts)
    next(counts)
    start = time.perf_counter()
    n_tokens = next(counts)
    return time.perf_counter() - start, n_tokens


def main(path: str) -> None:
    """Measure and print."""
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    n_gpus = torch.cuda.device_count()
    model, tokenizer = load_model(path, dtype=dtype)
    rollouts = plan_rollouts(
        load_roles("resources/roles").values(),
        load_questions("resources/questions.jsonl", 6),
        prompts_per_role=1,
        default_prompts=1,
        model_name="m",
        seed=0,
    )[: 2 * N_ROLLOUTS]
    prompts = [
        tokenizer(
            render_prompt(tokenizer, chat_messages(tokenizer, r.system_prompt, r.question)),
            add_special_tokens=False,
        ).input_ids
        for r in rollouts
    ]
    seeds = [rollout.seed for rollout in rollouts]
    names = [rollout.rollout_id for rollout in rollouts]

    def with_transformers() -> Iterable[int]:
        for start in (0, N_ROLLOUTS):
            part = slice(start, start + N_ROLLOUTS)
            rows = sample_responses(
                model, tokenizer, prompts[part], seeds=seeds[part], names=names[part], **SAMPLING
            )
            yield sum(row["n_tokens"] for row in rows)

    plain = seconds_a_batch(with_transformers())
    del model
    stops = read_stop_token_ids(path, tokenizer)
    batches = sample_batches(
        prompts,
        seeds=seeds,
        names=names,
        stop_token_ids=stops,
        model_path=path,
        revision=None,
        dtype=dtype,
        batch_size=N_ROLLOUTS,
        n_gpus=max(1, n_gpus),
        gpu_memory_utilization=0.8 if n_gpus else 0.3,
        enforce_eager=not n_gpus,
        **SAMPLING,
    )
    vllm = seconds_a_batch(
        sum(len(answer.tokens) - (answer.tokens[-1] in stops) for answer in answers)
        for _, answers in batches
    )
    print(f"{dtype}, {N_ROLLOUTS} rollouts of at most {N_TOKENS} tokens at once")
    base = plain[1] / plain[0]
    for name, (took, n_tokens) in (("transformers", plain), ("vLLM", vllm)):
        rate = n_tokens / took
        print(f"{name:<14}{rate:>9.0f} tokens/s{rate / base:>8.2f}x")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
