"""How much better a role's prompt explains a response than a neutral prompt does.

    ratio = (log p(response | role prompt, question)
             - log p(response | neutral prompt, question)) / n_tokens

in nats per response token, by the model that wrote the response. The first term is known from
generation; it is computed again where the text has another number of tokens than were sampled, or
where the engine did not tell.

It is a proxy, not a reading of the text: it says that the prompt left a trace in the response, not
that the response plays the role well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from axiskit.activations import encode_response
from axiskit.batching import length_sorted_batches, pad, run_halving
from axiskit.errors import NonFiniteError
from axiskit.journal import Journal
from axiskit.models import load_model, model_fingerprint
from axiskit.progress import Progress
from axiskit.recipes import RECIPE
from axiskit.rollouts import digest


def likelihood_ratios(
    responses: Sequence[dict[str, Any]],
    *,
    neutral_prompt: str,
    journal_folder: str | Path,
    shard: str,
    model_path: str,
    revision: str | None,
    dtype: str,
    chat_template_kwargs: dict[str, Any],
    tokens_per_batch: int,
) -> dict[str, dict[str, Any]]:
    """Ratio of each response, journaled as it is computed (thresholds do not enter the journal).

    Args:
        responses: Rows of responses/{shard}.parquet.
        neutral_prompt: The system prompt to compare with; ``""`` sends none.

    Returns:
        For each rollout id: ``ratio`` in nats per token, ``tokens_in`` read by the model. A
        response without tokens (empty, or nothing but thinking) has none.

    Raises:
        NonFiniteError: The model gives a response a likelihood that is not a number.
    """
    fingerprint = model_fingerprint(model_path, revision=revision)
    keys = {
        row["rollout_id"]: digest(
            RECIPE["judge_responses"],
            "likelihood",
            fingerprint,
            dtype,
            chat_template_kwargs,
            neutral_prompt,
            [row["system_prompt"], row["question"], row["response"]],
        )
        for row in responses
    }
    with Journal(journal_folder, shard) as journal:
        ratios = journal.read(set(keys.values()))
        missing = [row for row in responses if keys[row["rollout_id"]] not in ratios]
        if missing:
            model, tokenizer = load_model(
                model_path,
                revision=revision,
                dtype=dtype,
                chat_template_kwargs=chat_template_kwargs,
            )

            def encode(row: dict[str, Any], prompt: str) -> tuple[list[int], list[bool]]:
                return encode_response(
                    tokenizer, prompt, row["question"], row["response"], **chat_template_kwargs
                )

            # the neutral side of each response, and its own side where it is not known
            sides = [[encode(row, neutral_prompt)] for row in missing]
            missing = [row for row, side in zip(missing, sides, strict=True) if any(side[0][1])]
            sides = [side for side in sides if any(side[0][1])]
            for row, side in zip(missing, sides, strict=True):
                if row["log_likelihood"] is None or sum(side[0][1]) != row["n_tokens"]:
                    side.append(encode(row, row["system_prompt"]))
            batches = length_sorted_batches(
                [sum(len(tokens) for tokens, _ in side) for side in sides],
                max_tokens=tokens_per_batch,
            )

            def ratios_of(batch: list[int]) -> list[float]:
                sequences = [sequence for i in batch for sequence in sides[i]]
                sums = iter(log_likelihoods(model, *zip(*sequences, strict=True)).tolist())
                ratios = []
                for i in batch:
                    neutral = next(sums)
                    own = next(sums) if len(sides[i]) == 2 else missing[i]["log_likelihood"]
                    ratios.append((own - neutral) / sum(sides[i][0][1]))
                return ratios

            with Progress(f"judge_responses {shard}", len(responses), len(ratios)) as progress:
                for batch, values in run_halving(batches, ratios_of):
                    for i, ratio in zip(batch, values, strict=True):
                        rollout_id = missing[i]["rollout_id"]
                        if not abs(ratio) < float("inf"):
                            raise NonFiniteError(
                                f"rollout {rollout_id}: its log-likelihood ratio is {ratio}, a "
                                "finite one needed; check the weights, or try model.dtype float32"
                            )
                        tokens_in = sum(len(tokens) for tokens, _ in sides[i])
                        row = {"ratio": ratio, "tokens_in": tokens_in}
                        journal.append(keys[rollout_id], row)
                        ratios[keys[rollout_id]] = row
                    progress.advance(len(batch))
    return {rollout_id: ratios[key] for rollout_id, key in keys.items() if key in ratios}


@torch.inference_mode()
def log_likelihoods(
    model: Any, tokens: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]]
) -> Float[torch.Tensor, " batch"]:
    """Log-likelihood of the masked tokens of each row, summed, nats, float32.

    Left padding, so that the responses of all rows end together and logits are computed for the
    last positions alone.
    """
    ids = pad(tokens, 0, side="left").to(model.device)
    attention = pad([[1] * len(row) for row in tokens], 0, side="left").to(model.device)
    mask = pad(masks, 0, side="left").to(model.device, torch.float32)
    width = max(len(row) - list(row).index(True) for row in masks) + 1
    logits = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=(attention.cumsum(dim=-1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=width,
    ).logits[:, :-1]
    targets, mask = ids[:, 1 - width :], mask[:, 1 - width :]
    sums = [
        ((row.float().log_softmax(dim=-1).gather(-1, wanted[:, None])[:, 0]) * used).sum()
        for row, wanted, used in zip(logits, targets, mask, strict=True)  # row by row: memory
    ]
    return torch.stack(sums).cpu()
