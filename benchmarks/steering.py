"""What an intervention costs: tokens per second with and without it, as ratios within one run.

    .venv/bin/python benchmarks/steering.py results/smollm2-135m-instruct

Needs a finished run. The ways take turns, many times, and the shortest time of each counts, so
that what else the machine does meets all alike. One way is unsteered once more: how far its ratio
is from 1 says what the machine's noise does to the others. Compare rows of one run only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from axiskit import (
    ActivationSteering,
    build_capping_steerer,
    load_axis,
    load_capping_config,
    load_model,
)
from axiskit.capping import capping_floors
from axiskit.layers import decoder_blocks

N_TOKENS, ROUNDS = 16, 16


@contextmanager
def plain_capping(model: Any, axis: torch.Tensor, floors: dict[int, float]) -> Iterator[None]:
    """The formula as one would write it down, nothing counted, nothing spared."""

    def hook(layer: int, floor: float) -> Callable[..., torch.Tensor]:
        def cap(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            unit = axis[layer] / axis[layer].norm()
            below = (torch.einsum("bth,h->bt", output, unit) - floor).clamp(max=0)
            return output - torch.einsum("bt,h->bth", below, unit)

        return cap

    with ExitStack() as stack:
        for layer, floor in floors.items():
            handle = decoder_blocks(model)[layer].register_forward_hook(hook(layer, floor))
            stack.callback(handle.remove)
        yield


def main(folder: Path) -> None:
    """Measure and print."""
    model, tokenizer = load_model(str(folder / "model"), dtype="float32")
    axis = load_axis(folder / "axis.pt")
    config = load_capping_config(folder / "capping_config.pt", axis)
    wide = max(config["experiments"], key=lambda entry: len(entry["interventions"]))["id"]
    floors = capping_floors(config, wide)
    layer = len(axis) // 2
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "unsteered": nullcontext,
        "addition, 1 layer": lambda: ActivationSteering(model, axis[layer], layer_indices=layer),
        f"capping, {len(floors)} layers": lambda: build_capping_steerer(model, config, wide),
        f"capping, {len(floors)} layers, plain hooks": lambda: plain_capping(model, axis, floors),
        "unsteered, again": nullcontext,
    }
    print(f"{'batch':>5}  {'way':32}  {'tokens/s':>8}  ratio")
    for batch in (1, 16):
        ids = tokenizer(["Tell me about the sea, please."] * batch, return_tensors="pt").input_ids
        times: dict[str, float] = {}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                with way():
                    start = time.perf_counter()
                    model.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=N_TOKENS,
                        min_new_tokens=N_TOKENS,
                        do_sample=False,
                    )
                    seconds = time.perf_counter() - start
                times[name] = min(seconds, times.get(name, seconds))
        for name, seconds in times.items():
            rate = batch * N_TOKENS / seconds
            print(f"{batch:5}  {name:32}  {rate:8.1f}  {times['unsteered'] / seconds:5.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/smollm2-135m-instruct"))
