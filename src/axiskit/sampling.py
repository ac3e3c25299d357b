"""Sampling whose noise is a function of (seed, step), not of the state of a generator.

Step t of a rollout draws one uniform number from a hash of the rollout's seed and t, and picks a
token by inverse CDF. So batch size, order, shard and a resume in the middle change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int

from axiskit.errors import NonFiniteError

_FIRST_TOP_K = 256


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on seed and step alone (53 bits of a hash).

    >>> uniform(1, 2) == uniform(1, 2) != uniform(1, 3)
    True
    """
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def sample_tokens(
    logits: Float[torch.Tensor, "batch vocabulary"],
    uniforms: Sequence[float],
    *,
    temperature: float,
    top_p: float,
) -> Int[torch.Tensor, " batch"]:
    """Pick one token a row: softmax at ``temperature``, cut to the nucleus ``top_p``, inverse CDF.

    The nucleus is the smallest set of most likely tokens whose probability reaches ``top_p``. The
    CDF runs over it in order of token id, not of probability: two tokens of nearly equal
    probability may then swap ranks by rounding without changing the pick.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / temperature
    log_total = scaled.logsumexp(dim=-1, keepdim=True).double()
    vocabulary = logits.shape[-1]
    k = min(_FIRST_TOP_K, vocabulary)
    while True:  # nearly always one pass: a full sort of the vocabulary each step is slow
        top, ids = scaled.topk(k, dim=-1)
        probabilities = (top.double() - log_total).exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        if k == vocabulary or bool((before[:, -1] + probabilities[:, -1] >= top_p).all()):
            break
        k = min(k * 8, vocabulary)
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    ids, by_id = ids.sort(dim=-1)
    cdf = probabilities.gather(-1, by_id).cumsum(dim=-1)
    draw = torch.tensor(uniforms, dtype=cdf.dtype, device=cdf.device)[:, None] * cdf[:, -1:]
    pick = torch.searchsorted(cdf, draw, right=True).clamp(max=k - 1)
    return ids.gather(-1, pick)[:, 0]


class SeededSampler:
    """A transformers logits processor: leaves only the token that each row's seed picks.

    Use with ``generate(do_sample=False)``.

    Args:
        seeds: One seed a row.
        names: One name a row, for errors.
        prompt_width: Tokens of the padded prompts; what comes after them are the steps.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        names: Sequence[str],
        *,
        prompt_width: int,
        temperature: float,
        top_p: float,
    ) -> None:
        self.seeds = seeds
        self.names = names
        self.prompt_width = prompt_width
        self.temperature = temperature
        self.top_p = top_p
        self.log_likelihoods: list[torch.Tensor] = []
        """One tensor [batch] a step: log-likelihood of the picked token at temperature 1, nats."""

    def __call__(
        self,
        input_ids: Int[torch.Tensor, "batch token"],
        scores: Float[torch.Tensor, "batch vocabulary"],
    ) -> Float[torch.Tensor, "batch vocabulary"]:
        """Called by transformers at every step.

        Raises:
            NonFiniteError: A row's logits hold NaN or no finite number.
        """
        bad = scores.isnan().any(dim=-1) | ~scores.isfinite().any(dim=-1)
        if bool(bad.any()):
            name = self.names[int(bad.nonzero()[0, 0])]
            raise NonFiniteError(
                f"rollout {name}: the model's logits are NaN or infinite, finite ones needed; "
                "check the weights, or try model.dtype float32"
            )
        step = input_ids.shape[-1] - self.prompt_width
        uniforms = [uniform(seed, step) for seed in self.seeds]
        tokens = sample_tokens(scores, uniforms, temperature=self.temperature, top_p=self.top_p)
        picked = scores.gather(-1, tokens[:, None]) - scores.logsumexp(dim=-1, keepdim=True)
        self.log_likelihoods.append(picked[:, 0])
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(-1, tokens[:, None], 0.0)
