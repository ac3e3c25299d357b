"""How close generation and extraction come to the machine, as ratios within one run.

    .venv/bin/python benchmarks/generation.py results/smollm2-135m-instruct/model

Needs a model folder. Prints one table; compare rows of one run only, machines differ.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from axiskit.activations import encode_response, mean_activations
from axiskit.batching import length_sorted_batches
from axiskit.generation import sample_responses
from axiskit.layers import decoder_blocks
from axiskit.models import load_model
from axiskit.questions import load_questions
from axiskit.roles import load_roles
from axiskit.rollouts import plan_rollouts
from axiskit.templates import chat_messages, render_prompt

N_ROLLOUTS, N_TOKENS = 32, 24


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Shortest of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(path: str) -> None:
    """Measure and print."""
    model, tokenizer = load_model(path, dtype="float32")
    rollouts = plan_rollouts(
        load_roles("resources/roles").values(),
        load_questions("resources/questions.jsonl", 6),
        prompts_per_role=1,
        default_prompts=1,
        model_name="m",
        seed=0,
    )[:N_ROLLOUTS]
    messages = [chat_messages(tokenizer, r.system_prompt, r.question) for r in rollouts]
    prompts = [
        tokenizer(render_prompt(tokenizer, m), add_special_tokens=False).input_ids for m in messages
    ]
    sampling = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": N_TOKENS}

    def generate(batch: int) -> None:
        for i in range(0, len(rollouts), batch):
            chosen = slice(i, i + batch)
            sample_responses(
                model,
                tokenizer,
                prompts[chosen],
                seeds=[rollout.seed for rollout in rollouts[chosen]],
                names=[rollout.rollout_id for rollout in rollouts[chosen]],
                **sampling,
            )

    grouped = seconds(lambda: generate(N_ROLLOUTS))
    model.set_attn_implementation("sdpa")
    plain = seconds(lambda: generate(N_ROLLOUTS))
    single = seconds(lambda: generate(1))

    encoded = [
        encode_response(tokenizer, r.system_prompt, r.question, r.question * 5) for r in rollouts
    ]
    n_tokens = sum(len(tokens) for tokens, _ in encoded)
    layers = range(len(decoder_blocks(model)))

    def extract(batches: list[list[int]]) -> None:
        for batch in batches:
            tokens, masks = zip(*(encoded[i] for i in batch), strict=True)
            mean_activations(model, tokens, masks, layers, tokenizer.pad_token_id)

    sorted_batches = length_sorted_batches([len(t) for t, _ in encoded], max_tokens=2048)
    batched = seconds(lambda: extract(sorted_batches))
    one_by_one = seconds(lambda: extract([[i] for i in range(len(encoded))]))

    config = model.config
    x = torch.randn(2048, config.hidden_size)
    weight = torch.randn(config.intermediate_size, config.hidden_size)
    matmul = seconds(lambda: torch.nn.functional.linear(x, weight), 20)
    machine = 2 * x.numel() * weight.shape[0] / matmul
    in_blocks = sum(p.numel() for p in decoder_blocks(model).parameters())
    extraction = 2 * in_blocks * n_tokens / batched

    made = N_ROLLOUTS * N_TOKENS
    print(f"{torch.get_num_threads()} threads, float32, {N_ROLLOUTS} rollouts of {N_TOKENS} tokens")
    rows = [
        ("generate, one rollout at a time, SDPA", made / single, 1.0),
        (f"generate, batch of {N_ROLLOUTS}, SDPA", made / plain, single / plain),
        (f"generate, batch of {N_ROLLOUTS}, grouped", made / grouped, single / grouped),
        ("extract, one at a time", n_tokens / one_by_one, 1.0),
        ("extract, length-sorted batches", n_tokens / batched, one_by_one / batched),
    ]
    for name, rate, ratio in rows:
        print(f"{name:<42}{rate:>9.0f} tokens/s{ratio:>8.2f}x")
    print(f"{'extraction against a bare matrix product':<42}{extraction / machine:>17.0%}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
