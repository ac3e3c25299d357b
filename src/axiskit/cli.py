"""The command line: read, steer and cap a model along its Assistant Axis.

Light at import, so that help is there at once: each command imports what it needs.
"""

from __future__ import annotations

import re
import secrets
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from axiskit import __version__
from axiskit.dialogue import Dialogue, Reader
from axiskit.errors import (
    ArtifactError,
    AxiskitError,
    InterventionError,
    TranscriptError,
)
from axiskit.runs import Run, load_run, load_run_model, newest_run
from axiskit.terminal import (
    console,
    note,
    note_sources,
    plain,
    print_estimate,
    print_json,
    print_piece,
    print_trajectory,
    provenance,
    short,
    tell,
)

if TYPE_CHECKING:
    from axiskit.interventions import Intervention

BELOW_FLOOR = 3
"""Exit code of ``axiskit project --fail-below`` when a turn falls below."""

NO_ROOM = 4
"""Exit code of ``axiskit estimate`` when the disk has less room than the run needs."""

_COMMAND = re.compile(r"/\w+(?=\s|$)")

Dtype = Literal["float32", "bfloat16", "float16"]


class _Commands(typer.core.TyperGroup):
    """Tells an error that a user can mend in one line: no traceback, no warnings of torch."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings(action="ignore"):
                return super().invoke(ctx)
        except AxiskitError as error:
            tell(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _examples(*lines: str) -> str:
    return "\n".join(["[bold]Examples[/bold]", *(f"[dim]$[/dim] {line}" for line in lines)])


AxisOption = Annotated[
    Path | None,
    typer.Option(
        "--axis",
        metavar="FILE|FOLDER",
        help="An axis, or the folder of a run.",
        show_default="the newest in results/",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ID|FOLDER",
        help="Hugging Face id or folder.",
        show_default="the one that the axis was made with",
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Precision.", show_default="as the run"),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Take a model whose files differ from those that the axis was made with; layer count "
        "and hidden size must be the same even so.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System prompt.", show_default="none")
]
SteerOption = Annotated[
    float | None,
    typer.Option(
        "--steer",
        metavar="C",
        help="Add C times the axis; above 0 towards the Assistant.",
        show_default="no steering",
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer",
        metavar="L",
        help="The layer at which --steer acts.",
        show_default="the run's target layer",
    ),
]
CapOption = Annotated[
    str | None,
    typer.Option(
        "--cap",
        metavar="ID",
        help="Cap as this experiment of capping_config.pt says, e.g. layers_14:18-p0.25; 'auto' "
        "takes the run's own.",
        show_default="no cap",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Same seed, same answers.", show_default="a new one"),
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0, help="0 takes the most likely token.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", min=0, max=1, help="Share of probability sampled from.")
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"axiskit {__version__}")
        raise typer.Exit


@app.callback(
    epilog=_examples(
        "axiskit inspect results/my-model/axis.pt",
        "axiskit project talk.json",
        "axiskit generate 'Who are you?' --cap auto",
        "axiskit COMMAND --help",
    )
)
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Read, steer and cap a chat model along its Assistant Axis.

    The axis comes from a run of the workflow, the newest one in results/ unless --axis names
    another. A higher projection on it is more Assistant-like.
    """


@app.command(
    epilog=_examples(
        "axiskit project talk.json",
        "axiskit project results/my-model/conversations/*.json --layer 20",
        "axiskit project talk.json --fail-below 5 || echo 'it drifted'",
        "axiskit project talk.json --json | jq '.transcripts[0].turns[].projection'",
    )
)
def project(
    transcripts: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRANSCRIPT",
            help='JSON: {"conversation": [{"role": ..., "content": ...}, ...]}.',
            show_default=False,
        ),
    ],
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            metavar="L",
            help="The layer after which to project.",
            show_default="the run's target layer",
        ),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            "--fail-below",
            metavar="FLOAT",
            help=f"Exit with code {BELOW_FLOOR} when a turn's projection is lower.",
            show_default=False,
        ),
    ] = None,
    axis: AxisOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Project each turn of transcripts on the axis, as the unchanged model reads them.

    The bar shows where the default, the model as itself, stands: the middle 80 % of its responses.
    The first turn below it, or below --fail-below, is marked.
    """
    from axiskit.transcripts import first_crossing, load_transcript

    run = _find_run(axis)
    layer = _checked_layer(run, layer)
    band = run.band_at(layer)
    floor = fail_below if fail_below is not None else band[0] if band else None
    texts = [(path, load_transcript(path).messages) for path in transcripts]
    reader = Reader(run, layer, *_load_model(run, model, dtype, force))
    report: list[dict[str, Any]] = []
    for path, messages in texts:
        turns = reader.read(messages, str(path))
        values = [turn["projection"] for turn in turns]
        crossing = None if floor is None else first_crossing(values, floor)
        report.append({"file": str(path), "first_crossing": crossing, "turns": turns})
        if not as_json:
            print_trajectory(report[-1], messages, band, floor, layer)
    if as_json:
        print_json(
            {
                "run": str(run.folder),
                "model": reader.name,
                "layer": layer,
                "default_band": band,
                "floor": floor,
                "transcripts": report,
            }
        )
    if fail_below is None:
        return
    fallen = [text for text in report if text["first_crossing"] is not None]
    for text in fallen:
        turn = text["turns"][text["first_crossing"]]
        note(
            f"{text['file']}: turn {turn['turn'] + 1} projects {turn['projection']:.2f}, the first "
            f"below {floor:g}"
        )
    if fallen:
        raise typer.Exit(BELOW_FLOOR)


@app.command(
    epilog=_examples(
        "axiskit generate 'Who are you?' --system 'You are an oracle in a cave.'",
        "axiskit generate 'Who are you?' --system 'You are an oracle in a cave.' --cap auto",
        "axiskit generate 'Who are you?' --steer -1.5 --layer 15 --seed 7",
        "echo 'Who are you?' | axiskit generate - --temperature 0 --json",
    )
)
def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="The question; - reads it from stdin.", show_default=False
        ),
    ],
    system: SystemOption = None,
    steer: SteerOption = None,
    layer: LayerOption = None,
    cap: CapOption = None,
    seed: SeedOption = None,
    max_new_tokens: MaxNewTokensOption = 512,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.9,
    axis: AxisOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer one question, as the model is, steered or capped.

    The answer goes to stdout. What was measured goes to stderr: the answer's projection as the
    unchanged model reads it, and what the intervention did.
    """
    question = sys.stdin.read().strip() if prompt == "-" else prompt
    if not question.strip():
        raise typer.BadParameter("empty, a question needed", param_hint="PROMPT")
    run = _find_run(axis)
    intervention = _intervention(run, steer, layer, cap)
    loaded = _load_model(run, model, dtype, force)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    dialogue = Dialogue(Reader(run, run.target_layer, *loaded), intervention, system, sampling)
    turn = dialogue.ask(question, _new_seed(seed), None if as_json else print_piece)
    if as_json:
        print_json(dialogue.record(turn))
    else:
        typer.echo()
        note(dialogue.measured(turn))


@app.command(
    epilog=_examples(
        "axiskit chat --cap auto",
        "axiskit chat --system 'You are an oracle in a cave.' --steer 1",
        "axiskit chat --json < questions.txt > turns.jsonl",
    )
)
def chat(
    system: SystemOption = None,
    steer: SteerOption = None,
    layer: LayerOption = None,
    cap: CapOption = None,
    seed: SeedOption = None,
    max_new_tokens: MaxNewTokensOption = 512,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.9,
    axis: AxisOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON for each turn.")
    ] = False,
) -> None:
    """Talk with the model; each answer's projection stands below it.

    One line is one message. /save FILE writes the conversation as a transcript, over what was in
    FILE; /exit or Ctrl-D ends.
    """
    run = _find_run(axis)
    intervention = _intervention(run, steer, layer, cap)
    loaded = _load_model(run, model, dtype, force)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    dialogue = Dialogue(Reader(run, run.target_layer, *loaded), intervention, system, sampling)
    seed = _new_seed(seed)
    on_text = None if as_json else print_piece
    failed = False
    note("/save FILE writes a transcript, /exit or Ctrl-D ends")
    for line in _lines("" if as_json else "> "):
        command = _COMMAND.match(line)
        try:
            if command and command[0] == "/exit":
                break
            if command and command[0] == "/save":
                dialogue.save(line.removeprefix("/save").strip())
            elif command:
                raise TranscriptError(f"{command[0]}: no such command; /save FILE and /exit are")
            else:
                turn = dialogue.ask(line, dialogue.seed_of_next(seed), on_text)
                if as_json:
                    print_json(dialogue.record(turn), indent=None)
                else:
                    typer.echo()
                    console().print(dialogue.measured(turn), soft_wrap=True)
                    typer.echo()
        except AxiskitError as error:  # the conversation so far is not lost
            failed = True
            tell(error)
    if failed:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "axiskit inspect results/my-model/axis.pt",
        "axiskit inspect results/my-model/capping_config.pt --json",
        "axiskit inspect results/my-model/conversations/empty_chair.capped.json",
    )
)
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".pt, .parquet or .json", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what a file is: its kind, its shapes, and where it came from.

    Files of a run and of the published data set. No code in a file is run.
    """
    from axiskit.describe import describe

    found = describe(file)
    if as_json:
        print_json({"file": str(file), **asdict(found)})
        return
    rows = {key: short(value) for key, value in found.facts.items()}
    rows |= provenance(found.metadata)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, Text(plain(value)))
    out = console()
    out.print(Text(f"{file}: {found.kind}", style="bold"), soft_wrap=True)
    out.print(table)


@app.command(
    epilog=_examples(
        "axiskit estimate --configfile my.yaml",
        "axiskit estimate --configfile my.yaml --probe",
        "axiskit estimate --configfile config/presets/qwen3-32b.yaml --hardware h100 --jobs 4",
        "axiskit estimate --json | jq .disk",
    )
)
def estimate(
    config_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--configfile",
            metavar="FILE",
            help="Laid over config/config.yaml, as Snakemake does it; may be given again.",
            show_default="none",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Run the model here for up to two minutes, to tell times."),
    ] = False,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            metavar="GPU",
            help="Tell times from a GPU's data sheet, e.g. h100, a100, l40s.",
            show_default="times are unknown",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Jobs that run the model at once.",
            show_default="as the cores allow; with GPUs 1",
        ),
    ] = None,
    directory: Annotated[
        Path,
        typer.Option(
            "--directory", "-d", metavar="FOLDER", help="Where results/ lies, or will lie."
        ),
    ] = Path(),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID|FOLDER",
            help="The model whose size counts; a folder with its config.json is enough.",
            show_default="model.path of the config",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run takes, before it starts: tokens, time, GPU hours, disk, memory, dollars.

    Exit code 4 says that the disk has no room for it. The audit is not counted.
    """
    if probe and hardware:
        raise typer.BadParameter("give --probe or --hardware, not both")
    from axiskit.estimate import as_dict, gpu_warning
    from axiskit.preflight import estimate_plan, read_plan, room_left
    from axiskit.speed import hardware_named

    if hardware:
        hardware_named(hardware)
    plan = read_plan(config_files or [], directory=directory, model=model)
    if probe:
        note("running the model for some two minutes, once it is loaded ...")
    found = estimate_plan(plan, probe=probe, hardware=hardware, jobs_at_once=jobs)
    if as_json:
        print_json({"results": str(plan.results), **as_dict(found)})
    else:
        print_estimate(plan.config.model, found)
    note_sources(found)
    if hardware and found.memory and plan.config.resources.gpus:
        warning = gpu_warning(plan.config, found.memory, hardware)
        if warning:
            note(Text(warning, "yellow"))
    problem = room_left(plan, found)
    if problem:
        tell(problem)
        raise typer.Exit(NO_ROOM)


@app.command(
    name="app",
    epilog=_examples("axiskit app", "axiskit app --axis results/my-model --port 8080"),
)
def serve_app(
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. There is no password: other machines may see it."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    axis: AxisOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
) -> None:
    r"""Serve a page to talk with the model, as it is and capped side by side. Ctrl-C ends.

    It needs Gradio: pip install 'axiskit\[app]'.
    """
    from axiskit.app import serve

    run = _find_run(axis)
    serve(run, *_load_model(run, model, dtype, force), host=host, port=port)


def _find_run(axis: Path | None) -> Run:
    if axis is None:
        axis = newest_run()
        note(f"axis: {axis}")
    return load_run(axis)


def _checked_layer(run: Run, layer: int | None) -> int:
    from axiskit.describe import layer_ranges

    layer = run.target_layer if layer is None else layer
    if layer not in run.layers:
        raise ArtifactError(
            f"layer {layer}: the axis in {run.folder} has layers {layer_ranges(run.layers)}; name "
            "one of them (--layer)"
        )
    return layer


def _intervention(
    run: Run, steer: float | None, layer: int | None, cap: str | None
) -> Intervention | None:
    """Known, with its numbers, before the model is loaded."""
    if steer is not None and cap is not None:
        raise typer.BadParameter("give --steer or --cap, not both")
    if layer is not None and steer is None:
        raise typer.BadParameter("says where --steer acts, which is missing", param_hint="--layer")
    if steer is not None:
        from axiskit.interventions import steered

        return steered(run.axis, run.layers, _checked_layer(run, layer), steer)
    if cap is None:
        return None
    from axiskit.interventions import capped

    config, experiment = run.capping, run.experiment if cap == "auto" else cap
    if config is None or experiment is None:
        raise InterventionError(
            f"--cap {cap}: no capping_config.pt in {run.folder}; make one (rule calibrate_capping) "
            "or put a published one beside the axis"
        )
    return capped(config, experiment)


def _load_model(run: Run, model: str | None, dtype: str | None, force: bool) -> tuple[Any, Any]:
    with console(stderr=True).status("loading the model ..."):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        return load_run_model(run, model, dtype=dtype, force=force)


def _new_seed(seed: int | None) -> int:
    return secrets.randbits(31) if seed is None else seed


def _lines(prompt: str) -> Iterator[str]:
    """What is typed, or piped in, line by line; empty lines are left out."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (importing it gives input() history and editing)
    else:
        prompt = ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            typer.echo("\n" if prompt else "", nl=False)
            return
        if line:
            yield line
