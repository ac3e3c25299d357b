import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axiskit.errors import NonFiniteError
from axiskit.sampling import SeededSampler, sample_tokens, uniform


def frequencies(logits, temperature, top_p, n=4000):
    grid = [(i + 0.5) / n for i in range(n)]
    tokens = sample_tokens(logits.expand(n, -1), grid, temperature=temperature, top_p=top_p).numpy()
    return np.bincount(tokens, minlength=logits.shape[-1]) / n


@given(st.integers(0, 2**32), st.sampled_from([0.3, 0.7, 1.0, 2.0]))
def test_frequencies_are_the_softmax(seed, temperature):
    logits = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * 2
    expected = (logits.double() / temperature).softmax(-1).numpy()
    assert np.abs(frequencies(logits, temperature, 1.0) - expected).max() < 1e-3


@given(st.integers(0, 2**32), st.floats(0.05, 0.999))
def test_only_the_nucleus_is_sampled(seed, top_p):
    logits = torch.randn(400, generator=torch.Generator().manual_seed(seed))
    probabilities, order = logits.double().softmax(-1).sort(descending=True)
    size = int((probabilities.cumsum(-1) - probabilities < top_p).sum())
    found = frequencies(logits, 1.0, top_p)
    outside = order[size:].numpy()
    assert found[outside].sum() == 0
    expected = (probabilities[:size] / probabilities[:size].sum()).numpy()
    assert np.abs(found[order[:size].numpy()] - expected).max() < 1e-3


def test_a_flat_distribution_needs_more_than_the_first_top_k():
    logits = torch.zeros(5000)
    tokens = sample_tokens(logits.expand(3, -1), [0.0, 0.5, 0.9999], temperature=1.0, top_p=1.0)
    assert tokens.tolist() == [0, 2500, 4999]


def test_swapping_near_ties_by_rounding_changes_nothing():
    logits = torch.zeros(100)
    nudged = logits + 1e-6 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    grid = [(i + 0.37) / 1000 for i in range(1000)]
    first, second = (
        sample_tokens(x.expand(1000, -1), grid, temperature=1.0, top_p=1.0)
        for x in (logits, nudged)
    )
    assert torch.equal(first, second)


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert sample_tokens(logits, [0.99], temperature=0.0, top_p=1.0).tolist() == [1]


def test_noise_is_uniform_and_by_counter():
    draws = np.array([uniform(seed, step) for seed in range(100) for step in range(100)])
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert len(set(draws)) == 10_000
    assert uniform(7, 3) == uniform(7, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_logits_that_are_no_numbers_name_the_rollout(bad):
    sampler = SeededSampler([1, 2], ["a/0/0", "b/0/0"], prompt_width=1, temperature=1.0, top_p=1.0)
    scores = torch.zeros(2, 5)
    scores[1] = bad
    with pytest.raises(NonFiniteError, match="rollout b/0/0: the model's logits"):
        sampler(torch.zeros(2, 1, dtype=torch.long), scores)
