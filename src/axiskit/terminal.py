"""How the command line's results look in a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from axiskit.config import ModelSection
    from axiskit.estimate import Estimate
    from axiskit.templates import Messages

_BAR_WIDTH = 30
_LIST_LENGTH = 6
_QUIET = 0.8  # share of its cores that a probe gets at least where little else runs
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # they could steer the terminal


def print_trajectory(
    report: Mapping[str, Any],
    messages: Messages,
    band: tuple[float, float] | None,
    floor: float | None,
    layer: int,
) -> None:
    """A transcript's turns as a table, the first one below ``floor`` marked."""
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    scale = _scale([turn["projection"] for turn in report["turns"]], band)
    out = console()
    out.print(Text(f"{report['file']}, layer {layer}", style="bold"), soft_wrap=True)
    ends = "away".ljust(_BAR_WIDTH - len("Assistant")) + "Assistant"
    out.print(Text(f"turn  tokens  projection  {ends}", style="dim"))
    for turn, answer in zip(report["turns"], answers, strict=True):
        value = turn["projection"]
        number = "empty" if value is None else f"{value:.2f}"
        line = Text(f"{turn['turn'] + 1:>4}  {turn['n_tokens']:>6}  {number:>10}  ")
        line.append_text(_bar(value, band, scale))
        if turn["turn"] == report["first_crossing"]:
            line.append(f"  first below {floor:.2f}", "bold yellow")
        else:
            line.append(f"  {plain(' '.join(answer.split()))}", "dim")
        out.print(line, no_wrap=True, overflow="ellipsis")
    if band:
        out.print(Text(f"━ the middle 80 % of the default: {band[0]:.2f} to {band[1]:.2f}", "dim"))
    out.print()


def bar(value: float, values: Sequence[float | None], band: tuple[float, float] | None) -> Text:
    """The place of a value on a line that has room for all values and the default's band."""
    return _bar(value, band, _scale(values, band))


def _scale(values: Sequence[float | None], band: tuple[float, float] | None) -> tuple[float, float]:
    """Both ends of the bars: all values, and the band with its width on the left of it."""
    ends = [value for value in values if value is not None]
    if band:
        ends += [band[0] - (band[1] - band[0]), band[1] + 0.2 * (band[1] - band[0])]
    ends = ends or [0.0]
    margin = 0.02 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _bar(value: float | None, band: tuple[float, float] | None, scale: tuple[float, float]) -> Text:
    """The place of a value, and the band, on a line."""

    def cell(number: float) -> int:
        share = (number - scale[0]) / (scale[1] - scale[0])
        return min(_BAR_WIDTH - 1, max(0, int(share * _BAR_WIDTH)))

    text = Text()
    for i in range(_BAR_WIDTH):
        is_default = band is not None and cell(band[0]) <= i <= cell(band[1])
        if value is not None and i == cell(value):
            text.append("●", "bold" if is_default or band is None else "bold yellow")
        else:
            text.append(*("━", "green") if is_default else ("·", "dim"))
    return text


def print_estimate(model: ModelSection, estimate: Estimate) -> None:
    """What a run takes: a table of its stages, and what holds for the whole."""
    from axiskit.disk import REST, show_bytes
    from axiskit.estimate import show_seconds

    def shown(value: float | None, show: Any) -> str:
        return "unknown" if value is None else show(value)

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("jobs", "tokens in", "out", "time", "GPU hours", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in estimate.stages:
        has_tokens = stage.tokens_read is not None or stage.name not in {REST, "fetch_model"}
        table.add_row(
            stage.name,
            str(stage.jobs),
            *(
                shown(tokens, _count) if has_tokens else ""
                for tokens in (stage.tokens_read, stage.tokens_written)
            ),
            shown(stage.seconds, show_seconds),
            shown(stage.gpu_hours, "{:.3g}".format) if stage.gpus else "",
            shown(stage.disk, show_bytes),
        )
    out = console()
    size, facts = estimate.size, "size unknown, there is no config.json yet"
    if size:
        facts = (
            f"{size.n_layers} layers, hidden size {size.hidden_size}, "
            f"{size.parameters / 1e9:.3g} billion parameters, {model.dtype}"
        )
    rollouts = f"{estimate.workload.n_rollouts} rollouts"
    out.print(Text(f"{model.name}: {rollouts}; {facts}", "bold"), soft_wrap=True)
    out.print(table)
    if estimate.memory:
        memory = estimate.memory
        out.print(
            f"memory of a job: {show_bytes(memory.total)}, of it weights "
            f"{show_bytes(memory.weights)}; GPUs that hold it: "
            + ", ".join(f"{memory.gpus_needed(size)} of {size} GB" for size in estimate.gpu_sizes),
            soft_wrap=True,
        )
    else:
        out.print("memory of a job: unknown")
    if estimate.download:
        out.print(f"download: {show_bytes(estimate.download)}, to the cache of Hugging Face")
    if estimate.judge_usd != 0:
        cost = shown(estimate.judge_usd, "at most ${:.2f}".format)
        out.print(f"judge: {cost} (judge.prices)")
    out.print(f"disk: {shown(estimate.disk, show_bytes)} in results/ at most")
    jobs = "job" if estimate.jobs_at_once == 1 else "jobs"
    out.print(
        f"from start to end: {shown(estimate.wall_s, show_seconds)} with {estimate.jobs_at_once} "
        f"{jobs} at once"
    )


def note_sources(estimate: Estimate) -> None:
    """Where an estimate's lengths and times come from, and whether they can be trusted."""
    speed = estimate.speed
    note(f"lengths: {estimate.lengths.source}")
    note(f"speed: {speed.source if speed else 'unknown; --probe or --hardware tells it'}")
    if speed and speed.core_share < _QUIET:
        text = f"the probe got {speed.core_share:.0%} of its cores: other work runs here, and times"
        note(Text(f"{text} are too long by as much; probe again when it is quiet", "yellow"))


def _count(number: float) -> str:
    """A number of tokens, to three digits.

    >>> _count(950.0), _count(169_123_456)
    ('950', '169 M')
    """
    for unit in ("", " k", " M"):
        if number < 999.5 or unit == " M":
            break
        number /= 1000
    return f"{number:.3g}{unit}" if number < 1000 else f"{number:.0f}{unit}"


def provenance(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Where a file came from, in rows."""
    if not metadata:
        return {"made by": "not said in the file"}
    rows = {}
    if "model" in metadata:
        facts = metadata["model"]
        known = [facts.get("path"), facts.get("revision"), facts.get("dtype")]
        size = f"{facts.get('n_layers')} layers, hidden size {facts.get('hidden_size')}"
        rows["model"] = f"{facts.get('name')} ({', '.join(k for k in known if k)}; {size})"
        rows["fingerprint"] = str(facts.get("fingerprint"))
    for i, (stage, settings) in enumerate(metadata.get("stages", {}).items()):
        shown = [f"{key} {short(value)}" for key, value in settings.items() if key != "recipe"]
        recipe = f"{stage} (recipe {settings.get('recipe')})"
        rows["made by" if i == 0 else " " * i] = ": ".join(
            [recipe, *[", ".join(shown)] * bool(shown)]
        )
    if "versions" in metadata:
        rows["with"] = ", ".join(f"{k} {v}" for k, v in metadata["versions"].items())
    return rows


def short(value: Any) -> str:
    """A value of provenance or facts, in few words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {short(v)}" for key, v in value.items())
    if isinstance(value, list):
        from axiskit.describe import layer_ranges

        if len(value) > 2 and all(isinstance(v, int) for v in value):
            return layer_ranges(value)
        shown = [short(v) for v in value[:_LIST_LENGTH]]
        left = len(value) - len(shown)
        return ", ".join(shown) + (f" and {left} more" if left else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if value in ("", None) else str(value)


def plain(text: str) -> str:
    """Text without what could steer the terminal."""
    return _CONTROL.sub("\ufffd", text)


def print_piece(piece: str) -> None:
    """A piece of an answer, as it comes."""
    typer.echo(plain(piece), nl=False)


def print_json(content: Any, indent: int | None = 2) -> None:
    """JSON on stdout; ``indent`` None: in one line."""
    typer.echo(json.dumps(content, indent=indent, ensure_ascii=False))


def console(stderr: bool = False) -> Console:
    """A console that takes texts as they are: no markup, no highlights."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def note(text: str | Text) -> None:
    """A remark on stderr."""
    text = Text(text, "dim") if isinstance(text, str) else text
    console(stderr=True).print(text, soft_wrap=True)


def tell(error: Exception) -> None:
    """An error, in one line on stderr."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(plain(" ".join(str(error).split())), err=True)
