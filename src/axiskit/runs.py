"""A finished run as one object: its axis, its caps, where its default stands, and its model.

Light at import: torch and pyarrow are loaded by the functions that need them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axiskit.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    import torch

AXIS_FILES = ("axis.pt", "assistant_axis.pt")
"""What an axis is called in a folder: ours, and in the published data set."""

_BAND = (0.1, 0.9)


@dataclass(frozen=True)
class Run:
    """What a user of an axis needs of the run that made it.

    Attributes:
        folder: results/{model}, or the folder of a published axis.
        axis: [layer, hidden] float32.
        layers: The model's layer of each of the axis's.
        target_layer: Where results are shown.
        metadata: Of axis.pt; empty for a published axis, whose model a user has to name.
        capping: capping_config.pt as :func:`axiskit.load_capping_config` gives it; None: no file.
        experiment: The experiment of it to use where none is named: that of the run's own capped
            conversations, or :func:`axiskit.capping.recommended_experiment`.
        default_band: The middle 80 % of the default's projections at the target layer; None: no
            projections.parquet.
    """

    folder: Path
    axis: torch.Tensor
    layers: list[int]
    target_layer: int
    metadata: dict[str, Any]
    capping: dict[str, Any] | None
    experiment: str | None
    default_band: tuple[float, float] | None

    @property
    def model_facts(self) -> dict[str, Any]:
        """What axis.pt says of its model: name, path, dtype ...; empty for a published axis."""
        return dict(self.metadata.get("model", {}))

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """What the run passed to the chat template."""
        return dict(self.model_facts.get("chat_template_kwargs") or {})

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.model_facts.get("n_layers", len(self.layers)))

    def band_at(self, layer: int) -> tuple[float, float] | None:
        """The 0.1 and 0.9 quantile of the default's projections at a layer.

        None where the run has no projections of the default.

        Raises:
            ArtifactError: projections.parquet cannot be read or is of another model.
        """
        return _band(self.folder, self.metadata, layer)


def newest_run(results: str | Path = "results") -> Path:
    """The folder of the newest axis in ``results``.

    Raises:
        ArtifactError: There is none.
    """
    found = [path for path in Path(results).glob("*/axis.pt") if path.is_file()]
    if not found:
        raise ArtifactError(
            f"{results}: no folder with an axis.pt in it found, one needed; compute one (make "
            "axis), go to where results/ is, or name the file or folder (--axis)"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def load_run(folder: str | Path) -> Run:
    """Read the axis of a run and what lies beside it.

    Args:
        folder: results/{model}, or an axis file, published ones (a bare tensor) too.

    Raises:
        ArtifactError: There is no axis, a file holds code or cannot be read, or the files are of
            different models.
    """
    from axiskit.artifacts import check_same_model, check_shape
    from axiskit.axis import read_axis
    from axiskit.capping import load_capping_config, recommended_experiment

    path = _axis_path(Path(folder))
    axis, metadata = read_axis(path)
    layers = list(metadata.get("layers", range(len(axis))))
    if "model" in metadata:
        check_shape(path, axis, layers, metadata)
    n_layers = int(metadata.get("model", {}).get("n_layers", len(layers)))
    capping = experiment = None
    capping_path = path.parent / "capping_config.pt"
    if capping_path.exists():
        capping = load_capping_config(capping_path, axis, layers)
        check_same_model(metadata, capping.get("metadata", {}))
        ids = {entry["id"] for entry in capping["experiments"]}
        used = _experiment_of_conversations(path.parent)
        experiment = used if used in ids else recommended_experiment(capping, n_layers)
    target = _target_layer(path.parent, metadata, layers, n_layers)
    return Run(
        folder=path.parent,
        axis=axis,
        layers=layers,
        target_layer=target,
        metadata=metadata,
        capping=capping,
        experiment=experiment,
        default_band=_band(path.parent, metadata, target),
    )


def load_run_model(
    run: Run, model: str | None = None, *, dtype: str | None = None, force: bool = False
) -> tuple[Any, Any]:
    """Load the model of a run, checked before its weights are read.

    Args:
        run: As :func:`load_run` gives it.
        model: Hugging Face id or folder; None: what the run used. The path of a run is relative to
            where it was started: it is tried from here, from the parent of the results folder, and
            beside the axis.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: as the run.
        force: Take weights other than the run's, of the same layer count and hidden size.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: None is named, or it cannot be loaded.
        ArtifactError: Hidden size, layer count or, without ``force``, files are not those that the
            axis was made with.
    """
    import transformers

    from axiskit.models import load_model, model_fingerprint

    facts = run.model_facts
    path = model or _model_path(run)
    revision = facts.get("revision") if path == facts.get("path") else None
    _check_exists(path)
    try:
        config = transformers.AutoConfig.from_pretrained(path, revision=revision).get_text_config()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be loaded: {error}") from error
    found = {"layers": config.num_hidden_layers, "hidden size": config.hidden_size}
    needed = {"layers": run.n_layers, "hidden size": run.axis.shape[1]}
    for what, number in needed.items():
        if found[what] != number:
            raise ArtifactError(
                f"{path}: {what} {found[what]}, that of the axis in {run.folder} is {number}; name "
                "the model that the axis was made with (--model)"
            )
    if "fingerprint" in facts and not force:
        fingerprint = model_fingerprint(path, revision=revision)
        if fingerprint != facts["fingerprint"]:
            raise ArtifactError(
                f"{path}: its files have fingerprint {fingerprint}, those that the axis in "
                f"{run.folder} was made with {facts['fingerprint']} ({facts['path']}); name that "
                "model (--model), or take this one all the same (--force)"
            )
    return load_model(
        path,
        revision=revision,
        dtype=dtype or facts.get("dtype", "bfloat16"),
        chat_template_kwargs=run.chat_template_kwargs,
    )


def _axis_path(path: Path) -> Path:
    candidates = [path / name for name in AXIS_FILES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise ArtifactError(f"{path}: no {' or '.join(AXIS_FILES)} in it, an axis needed")
    raise ArtifactError(f"{path}: no such file or folder, an axis needed")


def _target_layer(folder: Path, metadata: dict[str, Any], layers: list[int], n_layers: int) -> int:
    from axiskit.artifacts import check_same_model, read_table

    path = folder / "layers.parquet"
    if path.exists():
        _, found = read_table(path, ["layer"])
        check_same_model(metadata, found)
        if found.get("target_layer") in layers:
            return int(found["target_layer"])
    return min(layers, key=lambda layer: abs(layer - n_layers // 2))


def _band(folder: Path, metadata: dict[str, Any], layer: int) -> tuple[float, float] | None:
    path = folder / "projections.parquet"
    if not path.exists():
        return None
    import numpy as np

    from axiskit.artifacts import check_same_model, read_table

    table, found = read_table(path)
    check_same_model(metadata, found)
    column = f"layer_{layer}"
    if column not in table.column_names:
        return None
    rows = zip(table["kind"].to_pylist(), table[column].to_pylist(), strict=True)
    default = [value for kind, value in rows if kind == "default"]
    if not default:
        return None
    low, high = np.quantile(default, _BAND)
    return float(low), float(high)


def _experiment_of_conversations(folder: Path) -> str | None:
    for path in sorted((folder / "conversations").glob("*.capped.json")):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return str(held["intervention"]["experiment"])
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"{path}: not a conversation held with a cap; delete it and run again"
            ) from None
    return None


def _model_path(run: Run) -> str:
    path = run.model_facts.get("path")
    if path is None:
        raise ModelError(
            f"{run.folder}: the axis does not say which model it was made with; name it (--model)"
        )
    folder = run.folder.resolve()
    tries = [Path(path), folder.parents[1] / path, folder / Path(path).name]
    return next((str(tried) for tried in tries if tried.is_dir()), str(path))


def _check_exists(path: str) -> None:
    """A lost folder is told from a Hugging Face id, which has one slash at most."""
    if not Path(path).is_dir() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise ModelError(f"{path}: no such model folder; name the model (--model)")
