"""Interventions on the residual stream while a model runs: steering, ablation, capping.

Layer i is the residual stream after decoder block i (0-based), and so is what an intervention at
layer i changes. Source: Lu et al. 2026, sections on steering and activation capping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from axiskit.errors import InterventionError
from axiskit.layers import block_output, decoder, decoder_blocks

InterventionType = Literal["addition", "ablation", "mean_ablation", "capping"]
Vectors = torch.Tensor | Sequence[torch.Tensor] | Sequence[Sequence[float]]
Numbers = float | Sequence[float]
_T = TypeVar("_T")
_Step = Callable[[torch.Tensor], torch.Tensor]

_FOLD_EVERY = 512


@dataclass(frozen=True)
class InterventionStats:
    """What an intervention did, over all tokens x layers that it could act on.

    Tokens of padding do not count, nor does the attention sink where it is spared.

    Attributes:
        n: Tokens x layers seen.
        fired: Share of them that were changed.
        mean_shift: Mean length of the change of those that were, in units of the activations.
        mean_relative_shift: Mean of that length over the length of the activation.
    """

    n: int
    fired: float
    mean_shift: float
    mean_relative_shift: float

    @classmethod
    def total(cls, parts: Sequence[InterventionStats]) -> InterventionStats:
        """Of several uses together."""
        n = sum(part.n for part in parts)
        fired = sum(part.fired * part.n for part in parts)

        def mean(values: Iterable[float]) -> float:
            weights = (part.fired * part.n for part in parts)
            return sum(v * w for v, w in zip(values, weights, strict=True)) / fired

        return cls(
            n=n,
            fired=fired / n if n else 0.0,
            mean_shift=mean(part.mean_shift for part in parts) if fired else 0.0,
            mean_relative_shift=mean(part.mean_relative_shift for part in parts) if fired else 0.0,
        )


class ActivationSteering:
    """Context manager that changes the residual stream of a model at chosen layers.

    With v the unit vector of a steering vector s, coefficient c, and h the stream after the block:

    - ``addition``: h + c s
    - ``ablation``: h - <h, v> v + c s (c = 0 only removes the direction)
    - ``mean_ablation``: h - <h, v> v + <m, v> v, with m the given mean activation
    - ``capping``: with ``cap_thresholds`` t, h - v max(<h, v> - t, 0): from above along s; with
      ``floor`` f, h - v min(<h, v> - f, 0): from below along s

    Vectors at one layer act one after the other. It works with key-value caches, on models spread
    over devices, and nested in others, the outer first. The hooks come off whatever happens inside.

    Args:
        model: A causal language model of transformers.
        steering_vectors: One vector [hidden] or several [vector, hidden].
        coefficients: One for each vector, or one for all; they multiply the vector as given and
            mean nothing to capping and mean ablation.
        layer_indices: The layer of each vector, or one for all; negative ones count from the end.
            One vector with several layers acts at each of them.
        intervention_type: See above.
        cap_thresholds: Capping from above, one for each vector, in units of the activations.
        floor: Capping from below, likewise; with the axis this keeps a model Assistant-like.
        mean_activations: For mean ablation, like ``steering_vectors``.
        positions: ``all`` tokens, or only the ``last`` of each forward pass (of prompts padded on
            the left; when decoding, every new token is the last).
        spare_sink: Leave the first token of each text alone: it is an attention sink, its norm
            many times that of the others, and a small model breaks when it is clamped. The
            published code does not spare it.

    Raises:
        InterventionError: It cannot act as asked: shapes, counts, layers, a vector of length zero,
            a compiled model. Never does it silently do nothing.

    Example::

        with ActivationSteering(model, [axis[22]], layer_indices=[22]):
            generate_response(model, tokenizer, conversation)
    """

    def __init__(
        self,
        model: nn.Module,
        steering_vectors: Vectors,
        *,
        coefficients: Numbers = 1.0,
        layer_indices: int | Sequence[int] = -1,
        intervention_type: InterventionType = "addition",
        cap_thresholds: Numbers | None = None,
        floor: Numbers | None = None,
        mean_activations: Vectors | None = None,
        positions: Literal["all", "last"] = "all",
        spare_sink: bool = True,
    ) -> None:
        if hasattr(model, "_orig_mod"):
            raise InterventionError(
                "the model is compiled: hooks added now would never run; compile it inside the "
                "context, or pass the model as it was before torch.compile"
            )
        if intervention_type not in ("addition", "ablation", "mean_ablation", "capping"):
            raise InterventionError(
                f"intervention_type: found '{intervention_type}', addition, ablation, "
                "mean_ablation or capping needed"
            )
        if positions not in ("all", "last"):
            raise InterventionError(f"positions: found '{positions}', 'all' or 'last' needed")
        self.model = model
        self.intervention_type = intervention_type
        self.positions = positions
        self.spare_sink = spare_sink
        self._blocks = decoder_blocks(model)
        vectors = _as_vectors("steering_vectors", steering_vectors, _hidden_size(model))
        layers = [layer_indices] if isinstance(layer_indices, int) else list(layer_indices)
        count = max(len(vectors), len(layers))
        vectors = _spread("steering_vectors", vectors, count)
        bounds, is_floor = _bounds(intervention_type, cap_thresholds, floor, count)
        means = None
        if intervention_type == "mean_ablation":
            if mean_activations is None:
                raise InterventionError("mean_activations: missing, mean_ablation needs them")
            means = _as_vectors("mean_activations", mean_activations, _hidden_size(model))
            means = _spread("mean_activations", means, count)
        weights = _spread("coefficients", _as_numbers(coefficients), count)
        self._steps: dict[int, list[_Step]] = {}
        for i, layer in enumerate(_spread("layer_indices", layers, count)):
            step: _Step
            if bounds is not None:
                step = _Capping(_unit(vectors[i], i), bounds[i], is_floor)
            elif means is not None:
                unit = _unit(vectors[i], i)
                step = _Ablation(unit, (means[i] @ unit) * unit)
            elif intervention_type == "ablation":
                step = _Ablation(_unit(vectors[i], i), weights[i] * vectors[i])
            else:
                step = _Addition(weights[i] * vectors[i])
            self._steps.setdefault(self._layer(layer), []).append(step)
        if intervention_type == "addition":  # one sum a layer, not one a vector
            for layer, steps in self._steps.items():
                total = sum(step.delta for step in steps if isinstance(step, _Addition))
                self._steps[layer] = [_Addition(torch.as_tensor(total))]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._first: torch.Tensor | None = None
        self._real: torch.Tensor | None = None
        self._seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        self._totals = torch.zeros(0, 4, dtype=torch.float64)  # one row a row of the batch

    @property
    def layers(self) -> list[int]:
        """The layers that it acts on, in order."""
        return sorted(self._steps)

    @property
    def stats(self) -> InterventionStats:
        """What it did so far, in all its uses."""
        return self._stats(slice(None))

    def stats_of(self, row: int) -> InterventionStats:
        """What it did so far in one row of the batches."""
        return self._stats(slice(row, row + 1))

    def _stats(self, rows: slice) -> InterventionStats:
        self._fold()
        n, fired, shift, relative = self._totals[rows].sum(dim=0).tolist()
        return InterventionStats(
            n=int(n),
            fired=fired / n if n else 0.0,
            mean_shift=shift / fired if fired else 0.0,
            mean_relative_shift=relative / fired if fired else 0.0,
        )

    def __enter__(self) -> ActivationSteering:
        if self._handles:
            raise InterventionError(
                "this intervention is active already; make a second one to act twice"
            )
        base = decoder(self.model)
        try:
            self._handles.append(base.register_forward_pre_hook(self._look_at, with_kwargs=True))
            for layer in self._steps:
                hook = self._hook(layer)
                self._handles.append(self._blocks[layer].register_forward_hook(hook))
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._first = self._real = None

    def _layer(self, layer: int) -> int:
        n_layers = len(self._blocks)
        if not -n_layers <= layer < n_layers:
            raise InterventionError(
                f"layer {layer}: the model has {n_layers} layers, 0 to {n_layers - 1} are possible"
            )
        return layer % n_layers

    def _look_at(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Which of the coming tokens are the first of their text, and which are padding."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
        mask = kwargs.get("attention_mask")
        cache = kwargs.get("past_key_values")
        self._first = self._real = None
        if cache is not None and int(cache.get_seq_length()) > 0:
            padding = getattr(self.model, "generation_config", None)
            padding = getattr(padding, "pad_token_id", None)
            if ids is not None and padding is not None and ids.shape[-1] == 1:
                self._real = ids != padding  # rows that ended wait for the others
            return
        if mask is not None and mask.ndim == 2:
            self._real = mask.bool()
            self._first = self._real & (mask.cumsum(dim=-1) == 1)
        else:
            self._first = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
            self._first[:, 0] = True

    def _hook(self, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = block_output(output)
            changed = hidden
            for step in self._steps[layer]:
                changed = step(changed)
            keep = self._acts_on(hidden)
            if keep is not None:
                changed = torch.where(keep[..., None], changed, hidden)
            self._count(hidden, changed, keep)
            return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

        return hook

    def _acts_on(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Positions that are changed [batch, token]; None: all of them."""
        keep = None
        if self.spare_sink and self._first is not None:
            keep = ~self._first.to(hidden.device)
        if self.positions == "last" and hidden.shape[-2] > 1:
            last = torch.zeros(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
            last[:, -1] = True
            keep = last if keep is None else keep & last
        return keep

    @torch.no_grad()
    def _count(
        self, hidden: torch.Tensor, changed: torch.Tensor, keep: torch.Tensor | None
    ) -> None:
        """Keep two numbers a token, on the device: reading them now would wait for it."""
        real = self._real.to(hidden.device) if self._real is not None else None
        if keep is not None:
            real = keep if real is None else keep & real
        shift = torch.linalg.vector_norm(changed.detach() - hidden.detach(), dim=-1)
        self._seen.append((shift, torch.linalg.vector_norm(hidden.detach(), dim=-1), real))
        if len(self._seen) >= _FOLD_EVERY:
            self._fold()

    def _fold(self) -> None:
        for shifts, norms, real in self._seen:
            used = torch.ones_like(shifts, dtype=torch.bool) if real is None else real
            shift = shifts.double().where(used, 0)
            relative = shift / norms.double().clamp(min=1e-30)
            numbers = torch.stack([used, shift > 0, shift, relative]).double().sum(dim=-1).T.cpu()
            missing = max(0, len(numbers) - len(self._totals))
            self._totals = nn.functional.pad(self._totals, (0, 0, 0, missing))
            self._totals[: len(numbers)] += numbers
        self._seen.clear()


class _Addition:
    """h + delta."""

    def __init__(self, delta: torch.Tensor) -> None:
        self.delta = delta

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.delta = self.delta.to(hidden)  # moved once: the layer's device and dtype stay the same
        return hidden + self.delta


class _Ablation:
    """h - <h, v> v + replacement."""

    def __init__(self, unit: torch.Tensor, replacement: torch.Tensor) -> None:
        self.unit = unit
        self.replacement = replacement

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.unit, self.replacement = self.unit.to(hidden), self.replacement.to(hidden)
        along = (hidden @ self.unit)[..., None]
        return torch.addcmul(hidden, along, self.unit, value=-1) + self.replacement


class _Capping:
    """h - v excess, with the excess over a ceiling or under a floor of <h, v>."""

    def __init__(self, unit: torch.Tensor, bound: float, is_floor: bool) -> None:
        self.unit = unit
        self.bound = bound
        self.limits = {"max": 0.0} if is_floor else {"min": 0.0}

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.unit = self.unit.to(hidden)
        excess = (hidden @ self.unit - self.bound).clamp(**self.limits)[..., None]
        return torch.addcmul(hidden, excess, self.unit, value=-1)


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


def _as_vectors(name: str, values: Vectors, hidden_size: int) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        if values.ndim not in (1, 2):
            raise InterventionError(
                f"{name}: found shape {list(values.shape)}, [hidden] or [vector, hidden] needed"
            )
        rows = [values] if values.ndim == 1 else list(values)
    else:
        rows = [torch.as_tensor(row) for row in values]
    if not rows:
        raise InterventionError(f"{name}: none found, at least one needed")
    for i, row in enumerate(rows):
        if row.ndim != 1 or len(row) != hidden_size:
            raise InterventionError(
                f"{name}[{i}]: found shape {list(row.shape)}, [{hidden_size}] needed (the model's "
                "hidden size); is it of another model?"
            )
        if not bool(row.isfinite().all()):
            raise InterventionError(f"{name}[{i}]: NaN or Inf found, finite numbers needed")
    return [row.detach().float() for row in rows]


def _as_numbers(values: Numbers) -> list[float]:
    return [float(values)] if isinstance(values, int | float) else [float(v) for v in values]


def _spread(name: str, values: list[_T], count: int) -> list[_T]:
    if len(values) not in (1, count):
        raise InterventionError(
            f"{name}: found {len(values)}, {count} needed (one for each vector and layer), or one "
            "for all"
        )
    return values * count if len(values) == 1 else values


def _bounds(
    intervention_type: str, ceiling: Numbers | None, floor: Numbers | None, count: int
) -> tuple[list[float] | None, bool]:
    name, other = ("floor", ceiling) if floor is not None else ("cap_thresholds", floor)
    given = floor if floor is not None else ceiling
    if intervention_type != "capping":
        if given is not None:
            raise InterventionError(
                f"{name}: given, but intervention_type is '{intervention_type}'; use 'capping'"
            )
        return None, False
    if given is None or other is not None:
        raise InterventionError(
            f"capping: found {'neither' if given is None else 'both'} of cap_thresholds (from "
            "above) and floor (from below), one needed"
        )
    return _spread(name, _as_numbers(given), count), floor is not None


def _unit(vector: torch.Tensor, index: int) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(vector)
    if not float(norm) > 0:
        raise InterventionError(f"steering_vectors[{index}]: its length is 0, a direction needed")
    return vector / norm
