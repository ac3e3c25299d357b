"""The figures of a run: SVG for print and report, interactive HTML where hovering helps.

Each reads the tables of results/ and draws them; nothing is computed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import plotly.express as px
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from plotly.subplots import make_subplots

from axiskit.artifacts import read_table, write_text
from axiskit.transcripts import first_crossing

COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#222255", "#bbbbbb"),
    *("#ee8866", "#997700", "#7755aa", "#44bb99"),
)
DEFAULT_COLOUR = "#000000"
CONDITION_COLOURS = {
    "unsteered": "#4477aa",
    "capped": "#228833",
    "away": "#ee6677",
    "transcript": "#222255",
}
_QUANTILES = (0.1, 0.9)
_PROJECTION_MAP = "cividis"

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "axiskit",  # the same figure gives the same file
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def plot_roles_on_axis(
    *,
    projections_path: str | Path,
    personas_path: str | Path,
    svg_path: str | Path,
    html_path: str | Path,
    max_labels: int,
) -> None:
    """Mean projection of each role at the target layer, with the middle 80 % of its rollouts.

    With more than ``max_labels`` roles the SVG shows both ends of the axis; the HTML shows all.
    """
    personas, metadata = read_table(personas_path, ["role", "kind", "group"])
    column = f"layer_{metadata['target_layer']}"
    projections = read_table(projections_path, ["role", column])[0].to_pandas()
    by_role = projections.groupby("role")[column]
    table = personas.to_pandas().set_index("role")
    table["mean"] = by_role.mean()
    table["low"], table["high"] = (by_role.quantile(q) for q in _QUANTILES)
    table = table.sort_values("mean").reset_index()
    colours = _group_colours(table)
    x_label = f"projection on the Assistant Axis after layer {metadata['target_layer']}"
    shown = _both_ends(table, max_labels)
    figure = Figure(figsize=(7.2, 1.2 + 0.19 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    heights = np.arange(len(shown))
    for group, colour in colours.items():
        chosen = (shown["group"] == group).to_numpy()
        if not chosen.any():
            continue
        rows = shown[chosen]
        axes.hlines(heights[chosen], rows["low"], rows["high"], color=colour, alpha=0.4, lw=3)
        axes.scatter(rows["mean"], heights[chosen], color=colour, s=26, label=group, zorder=3)
    axes.set_yticks(heights, list(shown["role"]))
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.margins(x=0.04)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"{x_label}  (right: more Assistant-like)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _save_svg(figure, svg_path)
    interactive = px.scatter(
        table,
        x="mean",
        y="role",
        color="group",
        color_discrete_map=colours,
        error_x=table["high"] - table["mean"],
        error_x_minus=table["mean"] - table["low"],
        category_orders={"role": list(table["role"])[::-1]},
        labels={"mean": x_label},
        height=150 + 20 * len(table),
    )
    interactive.update_yaxes(dtick=1)  # every name, however many
    _save_html(interactive, html_path)


def plot_traits_on_axis(
    *, traits_path: str | Path, svg_path: str | Path, html_path: str | Path, max_labels: int
) -> None:
    """Cosine of each trait vector with the axis at the target layer, ranked.

    With more than ``max_labels`` traits the SVG shows both ends; the HTML shows all.
    """
    table, metadata = read_table(traits_path)
    traits = table.to_pandas()
    traits = traits[traits["used"]].sort_values("cosine").reset_index(drop=True)
    x_label = f"cosine of trait and Assistant Axis after layer {metadata['target_layer']}"
    shown = _both_ends(traits, max_labels)
    figure = Figure(figsize=(7.2, 1.2 + 0.19 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    heights = np.arange(len(shown))
    colours = [COLOURS[0] if cosine >= 0 else COLOURS[1] for cosine in shown["cosine"]]
    axes.hlines(heights, 0, shown["cosine"], color=colours, alpha=0.5, lw=2)
    axes.scatter(shown["cosine"], heights, color=colours, s=26, zorder=3)
    axes.axvline(0, color="grey", lw=0.8)
    axes.set_yticks(heights, list(shown["trait"]))
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.margins(x=0.06)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"{x_label}  (right: more Assistant-like)")
    _save_svg(figure, svg_path)
    interactive = px.scatter(
        traits,
        x="cosine",
        y="trait",
        hover_data=["norm", "n_used_positive", "n_used_negative"],
        category_orders={"trait": list(traits["trait"])[::-1]},
        labels={"cosine": x_label},
        height=150 + 20 * len(traits),
    )
    interactive.update_yaxes(dtick=1)  # every name, however many
    _save_html(interactive, html_path)


def plot_axis_pc1_cosine(*, layers_path: str | Path, svg_path: str | Path) -> None:
    """Cosine of the axis and the first principal component of the role vectors, by layer."""
    table, metadata = read_table(layers_path)
    rows = table.to_pandas()
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rows["layer"], rows["cosine_axis_pc1"], color=COLOURS[0], marker="o", ms=3.5)
    _mark_target(axes, metadata["target_layer"])
    axes.set_xlabel("layer (residual stream after decoder block)")
    axes.set_ylabel("cos(axis, PC1)")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    _save_svg(figure, svg_path)


def plot_variance_explained(
    variance: npt.NDArray[np.float64], *, label: str | None = None, axes: Axes | None = None
) -> Axes:
    """Draw the cumulative share of variance by number of components.

    Args:
        variance: Share of each component, largest first; as :func:`axiskit.compute_pca` gives it.
        label: Name of the line in a legend.
        axes: Where to draw; None makes a figure.
    """
    if axes is None:
        axes = Figure(figsize=(6, 3.2), layout="constrained").add_subplot()
    numbers = np.arange(1, len(variance) + 1)
    axes.plot(numbers, np.cumsum(variance), marker="o", ms=3.5, label=label)
    axes.axhline(0.7, color="grey", lw=0.8, ls="--")
    axes.set_xlabel("number of components")
    axes.set_ylabel("share of variance, cumulative")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    return axes


def draw_variance_explained(*, variance_path: str | Path, svg_path: str | Path) -> None:
    """Variance of the role vectors explained by their components: target, early and late layer."""
    table, metadata = read_table(variance_path)
    rows = table.to_pandas()
    layers = list(metadata["layers"])
    target = metadata["target_layer"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=COLOURS)
    for layer in dict.fromkeys([target, layers[len(layers) // 6], layers[-1 - len(layers) // 6]]):
        variance = rows.loc[rows["layer"] == layer, "variance_ratio"].to_numpy()
        name = f"layer {layer}" + (" (target)" if layer == target else "")
        plot_variance_explained(variance, label=name, axes=axes)
    axes.annotate("70 %", (axes.get_xlim()[1], 0.7), ha="right", va="bottom", color="grey")
    axes.legend(frameon=False, loc="lower right")
    _save_svg(figure, svg_path)


def plot_persona_space(
    *,
    personas_path: str | Path,
    variance_path: str | Path,
    svg_path: str | Path,
    html_path: str | Path,
    max_labels: int,
) -> None:
    """Roles in the first three principal components, coloured by projection; 3-D in the HTML."""
    personas, metadata = read_table(personas_path)
    table = personas.to_pandas()
    target = metadata["target_layer"]
    variance = read_table(variance_path)[0].to_pandas()
    shares = variance[variance["layer"] == target].set_index("component")["variance_ratio"]
    names = [c for c in ("pc1", "pc2", "pc3") if c in table]
    titles = {name: f"{name.upper()} ({shares[i + 1]:.0%})" for i, name in enumerate(names)}
    labelled = (
        set(table["role"]) if len(table) <= max_labels else _extremes(table, names, max_labels)
    )
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    panels = figure.subplots(1, len(names) - 1, sharex=True, squeeze=False)[0]
    for axes, name in zip(panels, names[1:], strict=True):
        points = axes.scatter(
            table["pc1"], table[name], c=table["projection"], cmap=_PROJECTION_MAP, s=30
        )
        default = table[table["kind"] == "default"]
        axes.scatter(
            default["pc1"], default[name], marker="*", s=170, edgecolor="black", facecolor="none"
        )
        axes.set_xlabel(titles["pc1"])
        axes.set_ylabel(titles[name])
        axes.grid(alpha=0.25)
        axes.margins(0.18, 0.08)
    figure.colorbar(points, ax=panels, label="projection on the axis", shrink=0.8)
    figure.draw_without_rendering()  # labels need the final positions
    figure.set_layout_engine("none")
    for axes, name in zip(panels, names[1:], strict=True):
        _label_points(axes, table, labelled, "pc1", name)
    _save_svg(figure, svg_path)
    interactive = px.scatter_3d(
        table,
        x=names[0],
        y=names[1],
        z=names[-1],
        color="projection",
        text="role",
        hover_data=["group"],
        color_continuous_scale=_PROJECTION_MAP,
        labels=titles,
        height=750,
    )
    interactive.update_traces(marker={"size": 5}, textfont={"size": 10})
    _save_html(interactive, html_path)


def plot_trajectories(
    *,
    trajectories_path: str | Path,
    projections_path: str | Path,
    svg_path: str | Path,
    html_path: str | Path,
) -> None:
    """Mean projection of each assistant turn, a panel a conversation, by condition.

    The band holds the middle 80 % of the default's rollouts; a ring marks the first turn below it.
    """
    table, metadata = read_table(trajectories_path)
    rows = table.to_pandas()
    column = f"layer_{metadata['target_layer']}"
    projections = read_table(projections_path, ["kind", column])[0].to_pandas()
    default = projections.loc[projections["kind"] == "default", column]
    low, high = (float(default.quantile(q)) for q in _QUANTILES)
    rows["turn"] += 1
    names = list(dict.fromkeys(rows["conversation"]))
    columns = min(3, len(names))
    n_rows = -(-len(names) // columns)
    figure = Figure(figsize=(1 + 3.1 * columns, 0.8 + 2.4 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, columns, sharey=True, squeeze=False).ravel()
    interactive = make_subplots(rows=n_rows, cols=columns, shared_yaxes=True, subplot_titles=names)
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        chosen = rows[rows["conversation"] == name]
        place = {"row": i // columns + 1, "col": i % columns + 1}
        axes.axhspan(low, high, color="#dddddd", lw=0, label="default" if i == 0 else None)
        interactive.add_hrect(y0=low, y1=high, fillcolor="#dddddd", line_width=0, **place)
        for condition, line in chosen.groupby("condition", sort=False):
            colour = CONDITION_COLOURS[condition]
            axes.plot(line["turn"], line[column], color=colour, marker="o", ms=3, label=condition)
            first = first_crossing(line[column].tolist(), low)
            if first is not None:
                at = line.iloc[first]
                ring = {"s": 70, "facecolor": "none", "edgecolor": colour}
                axes.scatter(at["turn"], at[column], **ring, zorder=3)
            interactive.add_scatter(
                x=line["turn"],
                y=line[column],
                name=condition,
                legendgroup=condition,
                showlegend=bool(i == 0),
                line_color=colour,
                mode="lines+markers",
                **place,
            )
        domain = chosen["domain"].iloc[0]
        axes.set_title(f"{name} ({domain})" if domain else name, fontsize=9)
        axes.set_xlabel("assistant turn")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.supylabel(f"projection after layer {metadata['target_layer']}", fontsize=9)
    handles = {
        label: handle
        for axes in panels[: len(names)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    _save_svg(figure, svg_path)
    interactive.update_layout(height=120 + 280 * n_rows)
    interactive.update_xaxes(title="assistant turn")
    _save_html(interactive, html_path)


def _both_ends(table: Any, count: int) -> Any:
    """The first and the last rows of a table, ``count`` of them in all."""
    if len(table) <= count:
        return table
    half = count // 2
    return table.iloc[[*range(half), *range(len(table) - (count - half), len(table))]]


def _extremes(table: Any, columns: list[str], count: int) -> set[str]:
    """The default, and the roles that stand farthest out on each column."""
    each = max(1, count // (2 * len(columns)))
    names = set(table.loc[table["kind"] == "default", "role"])
    for column in columns:
        ordered = table.sort_values(column)["role"]
        names |= {*ordered.head(each), *ordered.tail(each)}
    return names


def _label_points(axes: Axes, table: Any, labelled: set[str], x: str, y: str) -> None:
    """Names beside their points, each at the first of a few offsets where it covers nothing."""
    points = axes.transData.transform(table[[x, y]].to_numpy())
    taken = [Bbox([point - 6, point + 6]) for point in points]
    near = [(9, 0, "left"), (-9, 0, "right"), (0, 10, "center"), (0, -10, "center")]
    far = [(dx, dy, side) for dy in (10, -10, 19, -19) for dx, side in ((6, "left"), (-6, "right"))]
    rows = [(i, row) for i, row in enumerate(table.itertuples()) if row.role in labelled]
    for i, row in rows:
        position = (getattr(row, x), getattr(row, y))
        for dx, dy, side in (*near, *far):
            text = axes.annotate(
                row.role,
                position,
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=7.5,
            )
            box = text.get_window_extent()
            others = taken[:i] + taken[i + 1 :]
            if (dx, dy, side) == far[-1] or not any(box.overlaps(other) for other in others):
                break
            text.remove()
        taken.append(box)


def _group_colours(table: Any) -> dict[str, str]:
    groups = sorted(set(table.loc[table["kind"] == "role", "group"]))
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    return colours | dict.fromkeys(table.loc[table["kind"] == "default", "group"], DEFAULT_COLOUR)


def _mark_target(axes: Axes, layer: int) -> None:
    axes.axvline(layer, color="grey", lw=0.8, ls="--")
    axes.annotate(f" target layer {layer}", (layer, 0.02), color="grey", fontsize=8, va="bottom")


def _save_svg(figure: Figure, path: str | Path) -> None:
    from io import StringIO

    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    write_text(path, text.getvalue())


def _save_html(figure: go.Figure, path: str | Path) -> None:
    figure.update_layout(template="simple_white")
    write_text(path, figure.to_html(include_plotlyjs=True, div_id="figure"))
