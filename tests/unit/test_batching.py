import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axiskit.batching import length_sorted_batches, pad, run_halving
from axiskit.errors import OutOfMemoryError


@given(st.lists(st.integers(1, 50)), st.integers(1, 120), st.integers(1, 8))
def test_batches_hold_each_once_within_the_budget(lengths, max_tokens, max_rows):
    batches = length_sorted_batches(lengths, max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 40))
def test_what_does_not_fit_is_halved_until_it_does(lengths, room):
    tried = []

    def compute(batch):
        tried.append(len(batch))
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [lengths[i] for i in batch]

    batches = length_sorted_batches(lengths, max_rows=32)
    found = {
        i: value
        for batch, values in run_halving(batches, compute)
        for i, value in zip(batch, values, strict=True)
    }
    assert found == dict(enumerate(lengths))
    assert sum(size > room for size in tried) <= 6  # learned, not tried again for every batch


def test_a_single_row_that_does_not_fit_is_an_error_and_others_pass_through():
    def no_room(batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    with pytest.raises(OutOfMemoryError, match="one sequence alone does not fit"):
        list(run_halving([[0, 1, 2]], no_room))

    def bug(batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(run_halving([[0, 1]], bug))


def test_pad():
    assert pad([[1, 2], [3]], 9, side="left").tolist() == [[1, 2], [9, 3]]
    assert pad([[1, 2], [3]], 9, side="right").tolist() == [[1, 2], [3, 9]]


ALLOCATE = """
import resource, torch
from axiskit.batching import run_halving
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
compute = lambda batch: torch.ones(len(batch), 12_500_000).sum().item()
print([len(batch) for batch, _ in run_halving([list(range(16)), [16, 17]], compute)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_cpu_that_really_runs_out_of_memory_halves():
    """Rows of 50 MB within 300 MB."""
    run = subprocess.run(
        [sys.executable, "-c", ALLOCATE], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[4, 4, 4, 4, 2]\n"
