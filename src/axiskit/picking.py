"""Picking files of a folder by name, as ``roles.include`` and its likes do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from axiskit.errors import AxiskitError, did_you_mean


def pick_files(
    folder: str | Path,
    include: Sequence[str] | str,
    *,
    kind: str,
    key: str,
    error: type[AxiskitError],
    suffixes: Sequence[str] = (".yaml",),
    always: Callable[[Path], bool] = lambda path: False,
) -> dict[str, Path]:
    """Map name to file for the included files, sorted by name.

    Args:
        folder: Where the files are.
        include: "all", or names: file names without suffix.
        kind: What a file holds, for errors.
        key: Section of the config with ``dir`` and ``include``, for errors.
        error: What is raised.
        suffixes: Of the files.
        always: Files that come along even if they are not named.

    Raises:
        AxiskitError: ``error``: the folder is missing or empty, or an included name has no file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise error(f"{folder}: no such folder ({key}.dir)")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in suffixes}
    if not files:
        listed = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise error(f"{folder}: no {kind} files ({listed}) found ({key}.dir)")
    if include == "all":
        return files
    for name in include:
        if name not in files:
            hint = did_you_mean(name, files, "add the file or drop the name")
            raise error(f"{folder}: no file for {kind} '{name}' ({key}.include); {hint}")
    return {name: path for name, path in files.items() if name in include or always(path)}
