"""Row journals: a finished row is on disk before the next one starts.

A journal is a folder of JSON Lines files. Each job appends to a file of its own and reads all, so
jobs never write over each other, and a killed job's rows are found by the next one, whatever shard
it runs. A line starts with the row's key: a hash of all that determines the row.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from axiskit.errors import WriteError

_log = logging.getLogger(__name__)

_KEY_START = len('{"key": "')
_KEY_END = _KEY_START + 32


class Journal:
    """Append-only rows of one stage, keyed by 32 hex digits.

    Args:
        folder: The stage's journal folder; made when missing.
        owner: Start of the name of this job's own file, e.g. its shard.
    """

    def __init__(self, folder: str | Path, owner: str) -> None:
        self.folder = Path(folder)
        self.path = self.folder / f"{owner}.{uuid.uuid4().hex[:12]}.jsonl"
        self._file: IO[str] | None = None

    def read(self, keys: Container[str]) -> dict[str, dict[str, Any]]:
        """The rows of all files whose key is asked for. Torn lines are skipped."""
        rows: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    key = line[_KEY_START:_KEY_END]
                    if key in keys and key not in rows:
                        try:
                            rows[key] = json.loads(line)
                        except ValueError:  # torn by a kill or a power cut: done again
                            _log.warning("%s: a torn line is skipped", path)
        return rows

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Key and row of every line of all files. Torn lines are skipped."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError):
                        yield line[_KEY_START:_KEY_END], json.loads(line)

    def append(self, key: str, row: Mapping[str, Any]) -> None:
        """Write one finished row to the disk.

        Raises:
            WriteError: The disk is full or not writable; all rows before are kept.
        """
        line = json.dumps({"key": key, **row}, ensure_ascii=False) + "\n"
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(
                f"{self.path}: cannot be written: {error.strerror}; make room and run the same "
                "command again: all finished rows are kept"
            ) from error

    def close(self) -> None:
        """Close this job's own file."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # the line that append could not write, once more
                file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
