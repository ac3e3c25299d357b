"""Where a workflow script's words go: its log file, and the terminal."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import TracebackType

from axiskit.errors import AxiskitError


def log_to(path: str | Path) -> None:
    """Send log lines, warnings and an uncaught error of this process to ``path``.

    The terminal gets warnings and one clear message for an error; the traceback of what is not an
    :class:`AxiskitError` goes to both. Call it first in a script.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.addFilter(lambda record: not record.name.startswith("vllm"))  # it warns at every start
    terminal.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [file, terminal]
    root.setLevel(logging.WARNING)
    logging.getLogger("axiskit").setLevel(logging.INFO)
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers heeds it, too

    def on_error(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        expected = isinstance(error, AxiskitError)
        root.error(
            "%s: %s" if expected else "%s: %s (a bug in axiskit or below it; see the log)",
            kind.__name__,
            error,
            exc_info=None if expected else (kind, error, traceback),
        )

    sys.excepthook = on_error
