"""Generation with vLLM against transformers, as a ratio within one run.

    .venv-vllm/bin/python benchmarks/vllm_generation.py results/smollm2-135m-instruct/model

Needs a model folder and an environment with vLLM (`make test-vllm` makes one). Both engines sample
the same prompts, loaded and warm. Compare rows of one run only, machines differ.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

import torch

from axiskit.generation import rollout_prompt, sample_responses
from axiskit.models import load_model, read_stop_token_ids
from axiskit.questions import load_questions
from axiskit.roles import load_roles
from axiskit.rollouts import plan_rollouts
from axiskit.vllm_engine import load_llm, sample

N_ROLLOUTS, N_TOKENS = 64, 32
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": N_TOKENS}


def tokens_a_second(generate: Callable[[slice], Iterable[int]]) -> float:
    """Of the second of two equal batches: the first one warms up."""
    generate(slice(N_ROLLOUTS))
    start = time.perf_counter()
    n_tokens = sum(generate(slice(N_ROLLOUTS, 2 * N_ROLLOUTS)))
    return n_tokens / (time.perf_counter() - start)


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
        tokenizer(rollout_prompt(tokenizer, rollout), add_special_tokens=False).input_ids
        for rollout in rollouts
    ]
    seeds = [rollout.seed for rollout in rollouts]
    names = [rollout.rollout_id for rollout in rollouts]
    stops = read_stop_token_ids(path, tokenizer)

    def with_transformers(part: slice) -> list[int]:
        rows = sample_responses(
            model, tokenizer, prompts[part], seeds=seeds[part], names=names[part], **SAMPLING
        )
        return [row["n_tokens"] for row in rows]

    def with_vllm(part: slice) -> list[int]:
        answers = sample(
            llm,
            prompts[part],
            seeds=seeds[part],
            names=names[part],
            stop_token_ids=stops,
            **SAMPLING,
        )
        return [len(answer.tokens) - (answer.tokens[-1] in stops) for answer in answers]

    rates = {"transformers": tokens_a_second(with_transformers)}
    del model
    llm = load_llm(
        path,
        revision=None,
        dtype=dtype,
        max_tokens=max(map(len, prompts)) + N_TOKENS,
        n_gpus=max(1, n_gpus),
        gpu_memory_utilization=0.8 if n_gpus else 0.3,
        enforce_eager=not n_gpus,
    )
    rates["vLLM"] = tokens_a_second(with_vllm)
    print(f"{dtype}, {N_ROLLOUTS} rollouts of at most {N_TOKENS} tokens at once")
    for name, rate in rates.items():
        print(f"{name:<14}{rate:>9.0f} tokens/s{rate / rates['transformers']:>8.2f}x")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
