"""Batches of sequences by token budget, halved when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from axiskit.errors import OutOfMemoryError

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def length_sorted_batches(
    lengths: Sequence[int], *, max_tokens: int | None = None, max_rows: int | None = None
) -> list[list[int]]:
    """Group sequences of similar length, longest first (so that memory runs out early or never).

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Rows times longest row of a batch stay within this; a longer row is alone.
        max_rows: Rows of a batch.

    Returns:
        Batches of indices into ``lengths``.

    >>> length_sorted_batches([3, 9, 4, 2], max_tokens=9)
    [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = batches[-1] if batches else []
        full = (
            not batch
            or (max_rows is not None and len(batch) >= max_rows)
            or (max_tokens is not None and (len(batch) + 1) * lengths[batch[0]] > max_tokens)
        )
        if full:
            batches.append([index])
        else:
            batch.append(index)
    return batches


def run_halving(
    batches: Sequence[list[int]], compute: Callable[[list[int]], Result]
) -> Iterator[tuple[list[int], Result]]:
    """Run ``compute`` on each batch; when one does not fit in memory, it and the rest are halved.

    Raises:
        OutOfMemoryError: A batch of one row does not fit.
    """
    limit = max(map(len, batches), default=0)
    queue = list(reversed(batches))
    while queue:
        batch = queue.pop()
        if len(batch) > limit:
            queue += [batch[limit:], batch[:limit]]
            continue
        try:
            result = compute(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise OutOfMemoryError(
                    f"one sequence alone does not fit in memory ({error}); use a smaller model, "
                    "a smaller dtype (model.dtype) or a device with more memory"
                ) from error
            limit = len(batch) // 2
            _log.warning("out of memory with %d rows: going on with %d", len(batch), limit)
            queue.append(batch)
        else:
            yield batch, result
            continue
        torch.cuda.empty_cache()  # out here the error no longer holds the failed batch


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def pad(rows: Sequence[Sequence[int]], fill: int, *, side: str) -> torch.Tensor:
    """Stack token rows [batch, token], padded on the ``left`` or ``right``."""
    width = max(map(len, rows))
    out = torch.full((len(rows), width), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        values = torch.tensor(row, dtype=torch.long)
        if side == "left":
            out[i, width - len(row) :] = values
        else:
            out[i, : len(row)] = values
    return out
