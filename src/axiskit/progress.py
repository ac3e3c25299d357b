"""Progress of long steps: a bar on a terminal, a line every so often in the log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0
_log = logging.getLogger(__name__)


class Progress:
    """Counts finished units; shows rate and time left.

    Args:
        what: What is being done, e.g. ``generate_responses 003``.
        total: Units to do in all.
        done: Units that an earlier run had finished.
        unit: Name of one unit, plural.
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "rollouts") -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._first = self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=f" {unit}",
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        _log.info("%s: %d %s, %d done before", what, total, unit, done)

    def advance(self, count: int) -> None:
        """Count ``count`` more units as finished."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = now
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
            _log.info(
                "%s: %d/%d %s, %.2f a second, %s left",
                *(self._what, self._done, self._total, self._unit, rate, left),
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
