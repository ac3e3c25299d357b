"""A short summary of a run, with what the method leads one to expect, met or not."""

from __future__ import annotations

from pathlib import Path

from axiskit.artifacts import read_table, write_text

GROUNDED = frozenset({"profession"})
FANTASTICAL = frozenset({"mythical", "collective", "nature", "abstract"})


def summarise_axis(
    *,
    roles_path: str | Path,
    projections_path: str | Path,
    personas_path: str | Path,
    layers_path: str | Path,
    axis_path: str | Path,
    summary_path: str | Path,
) -> None:
    """Write summary.txt: roles used, the order along the axis, and each expectation's outcome.

    The expectations: from the target layer up, cos(axis, PC1) > 0.7; the default projects higher
    than every role; grounded professions project higher than fantastical characters. One that does
    not hold is printed as such.
    """
    layers, metadata = read_table(layers_path)
    target, model = metadata["target_layer"], metadata["model"]
    roles = read_table(roles_path)[0].to_pandas()
    column = f"layer_{target}"
    projections = read_table(projections_path, ["role", column])[0].to_pandas()
    groups = read_table(personas_path, ["role", "kind", "group"])[0].to_pandas()
    means = projections.groupby("role")[column].mean().rename("projection")
    table = groups.join(means, on="role").sort_values("projection", ascending=False)
    by_layer = layers.to_pandas().set_index("layer")
    cosines = by_layer["cosine_axis_pc1"]
    upper = cosines[cosines.index >= target]
    default = table.loc[table["kind"] == "default", "projection"].iloc[0]
    others = table[table["kind"] == "role"]
    highest = others.iloc[0]
    grounded = others.loc[others["group"].isin(GROUNDED), "projection"].mean()
    fantastical = others.loc[others["group"].isin(FANTASTICAL), "projection"].mean()
    left_out = roles[~roles["used"]]
    lines = [
        f"Assistant Axis of {model['name']} ({model['n_layers']} layers, hidden size "
        f"{model['hidden_size']}): {axis_path}",
        f"  {int(roles['n_rollouts'].sum())} rollouts; {len(others)} of "
        f"{int((roles['kind'] == 'role').sum())} roles used"
        + (
            f", left out: {', '.join(left_out['role'])} (roles.parquet says why)"
            if len(left_out)
            else ""
        ),
        f"  at layer {target}: cos(axis, PC1) = {cosines[target]:.2f}, "
        f"{by_layer['n_components_70'][target]} components for 70 % of the variance, "
        f"|axis| = {by_layer['axis_norm'][target]:.3g}",
        "  mean projection, from Assistant-like to far from it:",
        *_wrapped([f"{row.role} {row.projection:.2f}" for row in table.itertuples()]),
        "Expected of a working axis:",
        _expectation(
            bool(upper.min() > 0.7),
            f"cos(axis, PC1) > 0.7 from layer {target} up: lowest {upper.min():.2f} at layer "
            f"{upper.idxmin()}",
        ),
        _expectation(
            bool(default > highest["projection"]),
            f"the default projects above every role: default {default:.2f}, highest role "
            f"{highest['role']} {highest['projection']:.2f}",
        ),
    ]
    if {*others["group"]} & GROUNDED and {*others["group"]} & FANTASTICAL:
        lines.append(
            _expectation(
                bool(grounded > fantastical),
                f"professions project above fantastical characters: mean {grounded:.2f} against "
                f"{fantastical:.2f}",
            )
        )
    write_text(summary_path, "\n".join(lines) + "\n")


def _expectation(holds: bool, text: str) -> str:
    return f"  {'holds ' if holds else 'FAILED'}  {text}"


def _wrapped(items: list[str], width: int = 100) -> list[str]:
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > width:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{item}"
    return [f"    {line}" for line in lines]
