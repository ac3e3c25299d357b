"""A page to talk with a model: as it is and capped, side by side, with each turn's projection.

It is served to this machine alone unless another address is named, since it asks for no password.
It loads nothing from elsewhere and sends nothing anywhere.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import plotly.graph_objects as go

from axiskit.errors import AxiskitError, PageError
from axiskit.figures import CONDITION_COLOURS
from axiskit.runs import Run
from axiskit.talks import SIDES, Settings, Talk, Talker

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
try:
    import gradio as gr
    from gradio.themes.utils.fonts import LocalFont
except ModuleNotFoundError:
    raise PageError(
        "gradio is not installed, the page needs it; pip install 'axiskit[app]'"
    ) from None

_LONGEST_ANSWER = 1024
_HOVER_CHARACTERS = 70
_FONT = "Source Sans Pro"  # comes along with Gradio
_FEWEST_TURNS = 5  # that the chart has room for


def build_page(run: Run, model: Any, tokenizer: Any) -> gr.Blocks:
    """Lay the page out and connect its parts.

    Args:
        run: As :func:`axiskit.runs.load_run` gives it.
        model: Its model, as :func:`axiskit.runs.load_run_model` gives it.
        tokenizer: The model's.
    """
    talker = Talker(run, model, tokenizer)
    page = gr.Blocks(
        title=f"axiskit: {_model_name(run)}",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 3600),  # loaded transcripts
    )
    with page:
        talk = gr.State(Talk())
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                gr.Markdown(f"## axiskit\n{html.escape(_model_name(run))}")
                system_prompt = gr.Textbox(
                    label="System prompt",
                    info="Optional, for example a role. Kept until a new conversation.",
                    lines=5,
                    max_lines=5,
                )
                settings = _lay_out_settings(talker)
                new = gr.Button("New conversation")
                load = gr.UploadButton("Load transcript", file_types=[".json"], elem_id="load")
            with gr.Column(scale=4, min_width=560):
                with gr.Row():
                    unsteered = _chat_box("unsteered", "unsteered: the model as it is")
                    capped = _chat_box("capped", "capped")
                with gr.Row():
                    message = gr.Textbox(
                        placeholder="A message to both",
                        show_label=False,
                        container=False,
                        scale=6,
                        elem_id="message",
                    )
                    send = gr.Button("Send", variant="primary", min_width=80)
                    stop = gr.Button("Stop", min_width=80)
                measured = gr.Markdown(elem_id="measured")
                chart = gr.Plot(show_label=False, container=False, elem_id="chart")

        do = _Handlers(talker)
        shown = [talk, unsteered, capped, system_prompt]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        one_by_one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        drop: dict[str, Any] = {
            "fn": do.drop,
            "inputs": [talk, message, *settings],
            "outputs": [*shown, message],
            **quick,
        }
        sending = gr.on(
            [message.submit, send.click],
            do.send,
            [talk, message, system_prompt, *settings],
            [*shown, message, measured, chart],
            show_progress="hidden",
            **one_by_one,
        )
        sending.failure(**drop)
        stop.click(**drop, cancels=[sending])
        gr.on(
            [new.click, unsteered.clear, capped.clear],
            do.clear,
            [*settings],
            [*shown, measured, chart],
            cancels=[sending],
            **quick,
        )
        load.upload(do.load, [talk, load, *settings], [talk, chart], **one_by_one)
        gr.on(
            [
                page.load,
                settings.experiment.change,
                settings.floor_shift.change,
                settings.coefficient.change,
            ],
            do.show_settings,
            [talk, *settings],
            [capped, chart],
            trigger_mode="always_last",
            **quick,
        )
    return page


def serve(
    run: Run, model: Any, tokenizer: Any, *, host: str = "127.0.0.1", port: int = 7860
) -> None:
    """Serve the page until interrupted, and print its address.

    Args:
        run: As for :func:`build_page`.
        model: Likewise.
        tokenizer: Likewise.
        host: The address to listen at. Whoever reaches it can use the page, and so the model.
        port: Likewise.

    Raises:
        PageError: The port is taken, or the address is not this machine's.
    """
    page = build_page(run, model, tokenizer)
    address = launch(page, host=host, port=port)
    print(f"axiskit: the page is at {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Start to serve a page in the background; ``page.close()`` ends it.

    Args:
        page: As :func:`build_page` gives it.
        host: The address to listen at.
        port: None takes a free one.

    Returns:
        Where the page is.

    Raises:
        PageError: The port is taken, or the address is not this machine's.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            # whatever the environment says: no tunnel, nothing recorded, nothing else served
            share=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            max_file_size="20mb",
            footer_links=[],
            theme=_theme(),
        )
    except OSError as error:
        raise PageError(
            f"{host}:{port}: the page cannot be served there: {error}; name another port (--port) "
            "or address (--host)"
        ) from error
    return str(address)


def draw_talk(run: Run, talk: Talk, floor: float | None = None) -> go.Figure:
    """Projection of each assistant turn of both sides, and of a loaded transcript.

    Args:
        run: Its default's band is drawn, where it has one.
        talk: What was said.
        floor: The cap's, at the target layer.
    """
    lines = []
    for side in SIDES:
        notes = [_shortened(turn.answers[side]) for turn in talk.turns]
        if side == "capped":
            pairs = zip(notes, talk.turns, strict=True)
            notes = [f"{note}<br>{html.escape(turn.applied)}" for note, turn in pairs]
        values = [turn.projections[side] for turn in talk.turns]
        lines.append(_Line(side, CONDITION_COLOURS[side], values, notes))
    if talk.transcript:
        lines.append(
            _Line(
                f"transcript: {html.escape(talk.transcript.name)}",
                CONDITION_COLOURS["transcript"],
                list(talk.transcript.projections),
                [_shortened(text) for text in talk.transcript.texts],
            )
        )
    figure = go.Figure()
    for line in lines:
        figure.add_scatter(
            x=list(range(1, len(line.values) + 1)),
            y=line.values,
            name=line.name,
            mode="lines+markers",
            line={"color": line.colour, "width": 2.5},
            marker={"size": 9},
            text=line.notes,
            hovertemplate="turn %{x}: %{y:.2f}<br>%{text}<extra></extra>",
            showlegend=True,
        )
    marks: dict[str, Any] = {"layer": "below", "opacity": 1, "showlegend": True}
    band = run.default_band or ()
    if band:
        name = "middle 80 % of the default's rollouts"
        figure.add_hrect(*band, fillcolor="#e8e8e8", line_width=0, name=name, **marks)
    if floor is not None:
        dash = {"color": CONDITION_COLOURS["capped"], "width": 1.5, "dash": "dash"}
        name = f"floor of the cap at layer {run.target_layer}"
        figure.add_hline(floor, line=dash, name=name, **marks)
    heights = [value for line in lines for value in line.values if value is not None]
    heights += [*band, *([] if floor is None else [floor])] or [0.0]
    margin = 0.08 * (max(heights) - min(heights)) or 1.0
    n_turns = max(_FEWEST_TURNS, *(len(line.values) for line in lines))
    figure.update_layout(
        template="simple_white",
        height=320,
        margin={"l": 70, "r": 10, "t": 10, "b": 45},
        font={"size": 14, "family": f"{_FONT}, sans-serif"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        xaxis={
            "title": {"text": "assistant turn", "font": {"size": 15}},
            "range": [0.7, n_turns + 0.3],
            "tick0": 1,
            "dtick": max(1, n_turns // 10),
        },
        yaxis={
            "title": {
                "text": f"projection after layer {run.target_layer}<br>up: more Assistant-like",
                "font": {"size": 15},
            },
            "range": [min(heights) - margin, max(heights) + margin],
        },
    )
    return figure


def _theme() -> gr.Theme:
    # the bold face and not the half-bold one, whose file in Gradio lacks most letters
    font = LocalFont(_FONT, weights=(400, 700))
    theme = gr.themes.Default(
        primary_hue="blue", text_size="sm", spacing_size="sm", font=[font, "sans-serif"]
    )
    return theme.set(body_text_color_subdued="*neutral_500")


class _Line(NamedTuple):
    name: str
    colour: str
    values: list[float | None]
    notes: list[str]


class _Controls(NamedTuple):
    """In the order of :class:`axiskit.talks.Settings`."""

    experiment: gr.Dropdown
    floor_shift: gr.Slider
    coefficient: gr.Slider
    max_new_tokens: gr.Slider
    seed: gr.Number


def _lay_out_settings(talker: Talker) -> _Controls:
    run = talker.run
    ids = [entry["id"] for entry in run.capping["experiments"]] if run.capping else []
    experiment = gr.Dropdown(
        [("no cap", ""), *((name, name) for name in ids)],
        value=run.experiment or "",
        num_choices_shown=None,
        label="Capping experiment",
    )
    floor_shift = gr.Slider(
        *(-2, 2, 0),
        step=0.1,
        label="Shift of its floors",
        info="in lengths of the axis at each layer",
        elem_id="floor-shift",
    )
    coefficient = gr.Slider(
        *(-3, 3, 0),
        step=0.1,
        label="Steering coefficient",
        info=f"times the axis, added at layer {run.target_layer}",
        elem_id="coefficient",
    )
    with gr.Accordion("Sampling", open=False):
        max_new_tokens = gr.Slider(
            *(8, _LONGEST_ANSWER, talker.sampling["max_new_tokens"]),
            step=8,
            label="Longest answer (tokens)",
        )
        seed = gr.Number(0, precision=0, minimum=0, label="Seed")
    return _Controls(experiment, floor_shift, coefficient, max_new_tokens, seed)


def _chat_box(side: str, label: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=label,
        elem_id=f"{side}-side",
        height=450,
        buttons=["copy_all"],
        feedback_options=None,
    )


class _Handlers:
    """What happens on the page; values go in and out in the order of build_page's lists."""

    def __init__(self, talker: Talker) -> None:
        self.talker = talker

    def send(
        self, talk: Talk, question: str, system_prompt: str, *values: Any
    ) -> Iterator[list[Any]]:
        settings = Settings(*values)
        with _told():
            talk = replace(talk, system_prompt=system_prompt)
            for step in self.talker.answer(talk, question, settings):
                done = not step.pending
                line = _measured(step) if done else gr.skip()
                chart = self._chart(step, settings) if done else gr.skip()
                yield [*self._shown(step, settings), "", line, chart]

    def drop(self, talk: Talk, question: str, *values: Any) -> list[Any]:
        """Take the unfinished turn away; its question is put back, to be sent again."""
        kept = replace(talk, pending="", answers={})
        return [*self._shown(kept, Settings(*values)), talk.pending or question]

    def clear(self, *values: Any) -> list[Any]:
        settings = Settings(*values)
        return [*self._shown(Talk(), settings), "", self._chart(Talk(), settings)]

    def load(self, talk: Talk, path: str, *values: Any) -> list[Any]:
        with _told():
            talk = self.talker.read(talk, path)
        return [talk, self._chart(talk, Settings(*values))]

    def show_settings(self, talk: Talk, *values: Any) -> list[Any]:
        settings = Settings(*values)
        return [gr.update(label=settings.applied), self._chart(talk, settings)]

    def _shown(self, talk: Talk, settings: Settings) -> list[Any]:
        return [
            talk,
            gr.update(value=talk.messages("unsteered")),
            gr.update(value=talk.messages("capped"), label=settings.applied),
            gr.update(interactive=not (talk.turns or talk.pending)),  # the system prompt
        ]

    def _chart(self, talk: Talk, settings: Settings) -> go.Figure:
        return draw_talk(self.talker.run, talk, self.talker.floor(settings))


@contextmanager
def _told() -> Iterator[None]:
    """Our errors appear on the page, without a traceback in the terminal."""
    try:
        yield
    except AxiskitError as error:
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from None


def _measured(talk: Talk) -> str:
    """The last turn's numbers, in a line."""
    turn = talk.turns[-1]
    values = (
        f"{side} **{'empty' if value is None else format(value, '.2f')}**"
        for side, value in turn.projections.items()
    )
    line = f"Turn {len(talk.turns)}: {', '.join(values)}"
    if turn.cap_stats is not None:
        stats = turn.cap_stats
        line += (
            f". The cap changed {stats.fired:.0%} of tokens × layers, "
            f"by {stats.mean_relative_shift:.1%} of their length."
        )
    return line


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    cut = line[:_HOVER_CHARACTERS] + ("…" if len(line) > _HOVER_CHARACTERS else "")
    return html.escape(cut)


def _model_name(run: Run) -> str:
    return str(run.model_facts.get("name", run.folder.name))
