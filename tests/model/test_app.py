"""The page: what its parts do, and the whole of it driven in a headless browser."""

import json
import os
import shutil
import socket
import sys
import threading
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import torch
from conftest import HIDDEN, N_LAYERS, save_broken_model
from playwright.sync_api import sync_playwright

from axiskit import ActivationSteering, generate_response
from axiskit.app import _Handlers, build_page, draw_talk, launch, serve
from axiskit.capping import load_capping_config
from axiskit.errors import InterventionError, NonFiniteError, PageError, TranscriptError
from axiskit.layers import decoder_blocks
from axiskit.models import load_model
from axiskit.runs import Run
from axiskit.talks import Settings, Talk, Talker
from axiskit.trajectories import project_turns

pytestmark = pytest.mark.filterwarnings("ignore::Warning:gradio")

LAYERS = list(range(N_LAYERS))
TARGET = 2
WINDOW = (1, 2)
FLOORS = {layer: 2.0 + layer for layer in LAYERS}
CAP = Settings("layers_1:3-p0.25", max_new_tokens=12)
TRANSCRIPT = [
    {"role": "user", "content": "Who is there?"},
    {"role": "assistant", "content": "A voice in the wall."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still the voice."},
    {"role": "user", "content": "Enough."},
    {"role": "assistant", "content": "As you wish: goodbye."},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random axis of the tiny model, with caps that bite, as a run has them."""
    axis = torch.randn(N_LAYERS, HIDDEN, generator=torch.Generator().manual_seed(0))
    unit = axis / axis.norm(dim=-1, keepdim=True)
    windows = {"layers_1:3-p0.25": WINDOW, "layers_3:4-p0.25": (3,)}
    path = tmp_path_factory.mktemp("run") / "capping_config.pt"
    config = {
        "vectors": {f"layer_{i}": {"vector": -unit[i], "layer": i} for i in LAYERS},
        "experiments": [
            {
                "id": name,
                "interventions": [{"vector": f"layer_{i}", "cap": -FLOORS[i]} for i in window],
            }
            for name, window in windows.items()
        ],
    }
    torch.save(config, path)
    return Run(
        folder=path.parent,
        axis=axis,
        layers=LAYERS,
        target_layer=TARGET,
        metadata={"stages": {"generate_responses": {"temperature": 0.9, "max_new_tokens": 24}}},
        capping=load_capping_config(path, axis, LAYERS),
        experiment="layers_1:3-p0.25",
        default_band=(-1.0, 1.5),
    )


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, dtype="float32")


@pytest.fixture
def talker(run, loaded):
    return Talker(run, *loaded)


def last(steps):
    return list(steps)[-1]


def test_both_sides_answer_and_are_read_by_the_unchanged_model(talker, run, loaded):
    steps = list(talker.answer(Talk("Be a cat."), "Why?", CAP))
    assert [step.pending for step in steps] == ["Why?"] * (len(steps) - 1) + [""]
    assert not steps[0].answers
    for side in ("unsteered", "capped"):
        texts = [step.answers[side] for step in steps if side in step.answers]
        assert len(texts) > 4
        assert all(later.startswith(text) for text, later in pairwise(texts))
        assert texts[-1] == steps[-1].turns[0].answers[side]
    talk = last(talker.answer(steps[-1], "And then?", CAP))
    assert [turn.question for turn in talk.turns] == ["Why?", "And then?"]
    system = {"role": "system", "content": "Be a cat."}
    for side in ("unsteered", "capped"):
        expected = project_turns(
            *(*loaded, [system, *talk.messages(side)]), *(run.axis, LAYERS, TARGET)
        )
        assert [turn.projections[side] for turn in talk.turns] == pytest.approx(
            [turn[f"layer_{TARGET}"] for turn in expected], abs=1e-4
        )
    assert talk.turns[0].answers["unsteered"] != talk.turns[0].answers["capped"]
    assert talk.turns[0].cap_stats.fired > 0.5


def test_without_cap_and_steering_both_answers_are_the_same(talker):
    settings = Settings(max_new_tokens=16)
    talk = last(talker.answer(Talk(), "Why?", settings))
    talk = last(talker.answer(talk, "Why?", settings))
    for turn in talk.turns:
        assert turn.answers["unsteered"] == turn.answers["capped"]
        assert turn.cap_stats is None
    assert talk.turns[0].answers["unsteered"] != talk.turns[1].answers["unsteered"]
    again = last(talker.answer(Talk(), "Why?", settings))
    assert again.turns[0] == talk.turns[0]
    other = last(talker.answer(Talk(), "Why?", replace(settings, seed=1)))
    assert other.turns[0].answers != talk.turns[0].answers


def test_sliders_shift_floors_and_steer(talker, run, loaded):
    settings = Settings("layers_3:4-p0.25", 0.5, -1.5, max_new_tokens=16, seed=3)
    turn = last(talker.answer(Talk(), "Why?", settings)).turns[0]
    assert turn.applied == "capped by layers_3:4-p0.25, floors +0.5, steered -1.5"

    def by_hand(coefficient, floor):
        model, tokenizer = loaded
        cap = {"layer_indices": 3, "intervention_type": "capping", "floor": floor}
        steering = {"layer_indices": TARGET, "coefficients": coefficient}
        with (
            ActivationSteering(model, run.axis[TARGET], **steering),
            ActivationSteering(model, run.axis[3], **cap),
        ):
            sampling = talker.sampling | {"max_new_tokens": 16}
            question = [{"role": "user", "content": "Why?"}]
            seed = settings.turn_seed(0)
            return generate_response(model, tokenizer, question, **sampling, seed=seed)

    shifted = FLOORS[3] + 0.5 * float(run.axis[3].norm())
    assert by_hand(-1.5, shifted) == turn.answers["capped"]
    assert by_hand(0, shifted) != turn.answers["capped"]
    assert by_hand(-1.5, FLOORS[3]) != turn.answers["capped"]


def test_floor_at_the_target_layer(talker, run):
    shifted = FLOORS[TARGET] + 0.5 * float(run.axis[TARGET].norm())
    assert talker.floor(replace(CAP, floor_shift=0.5)) == pytest.approx(shifted)
    assert talker.floor(replace(CAP, experiment="layers_3:4-p0.25")) is None
    assert talker.floor(Settings()) is None


def test_an_answer_that_nobody_waits_for_stops(talker, loaded):
    steps = talker.answer(Talk(), "Why?", replace(CAP, max_new_tokens=400))
    while not next(steps).answers.get("unsteered"):
        pass
    steps.close()
    assert talker._busy.acquire(timeout=20)
    talker._busy.release()
    assert not any(block._forward_hooks for block in decoder_blocks(loaded[0]))
    assert len(last(talker.answer(Talk(), "Why?", CAP)).turns) == 1


def test_bad_input_is_told(talker, run, loaded, tmp_path):
    def refused(error, message, *arguments):
        with pytest.raises(error, match=message):
            last(talker.answer(*arguments))

    refused(TranscriptError, "message: empty", Talk(), "  \n", CAP)
    too_long = r"conversation and answer: \d+ tokens, the model reads 512"
    refused(TranscriptError, too_long, Talk(), "why " * 150, CAP)
    refused(TranscriptError, too_long, Talk("why " * 150), "Why?", CAP)
    refused(InterventionError, "not in the capping config", Talk(), "?", Settings("layers_9:9"))
    uncapped = Talker(replace(run, capping=None, experiment=None), *loaded)
    with pytest.raises(InterventionError, match="has no capping_config"):
        last(uncapped.answer(Talk(), "Why?", CAP))
    path = tmp_path / "long.json"
    path.write_text(json.dumps([TRANSCRIPT[0], {"role": "assistant", "content": "no " * 200}]))
    with pytest.raises(TranscriptError, match="the model reads 512"):
        talker.read(Talk(), path)


def test_numbers_that_are_none_are_told(run, tiny_model, tmp_path):
    talker = Talker(run, *load_model(str(save_broken_model(tiny_model, tmp_path / "model"))))
    with pytest.raises(NonFiniteError, match="logits"):
        last(talker.answer(Talk(), "Why?", CAP))
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(TRANSCRIPT))
    with pytest.raises(NonFiniteError, match="turn 1: a projection is NaN"):
        talker.read(Talk(), path)


def test_an_error_on_the_page_is_our_message_and_the_question_comes_back(talker):
    import gradio as gr

    handlers = _Handlers(talker)
    values = (CAP.experiment, 0, 0, 16, 0)
    with pytest.raises(gr.Error) as told:
        list(handlers.send(Talk(), "why " * 150, "", *values))
    assert "the model reads 512" in told.value.message
    pending = Talk(pending="Why?", answers={"unsteered": "Be"})
    talk, unsteered, capped, _, question = handlers.drop(pending, "", *values)
    assert (question, talk.pending) == ("Why?", "")
    assert unsteered["value"] == capped["value"] == []


def test_chart_without_turns_band_or_cap_can_be_drawn(run):
    figure = draw_talk(replace(run, default_band=None), Talk())
    assert [len(trace.x) for trace in figure.data] == [0, 0]
    assert not figure.layout.shapes


def test_page_is_served_to_loopback_unless_asked_and_a_taken_port_is_told(run, loaded):
    def answers(host, port):
        try:
            return bool(socket.create_connection((host, port), timeout=5).close() is None)
        except ConnectionRefusedError:
            return False

    with closing(build_page(run, *loaded)) as page:
        port = urlsplit(launch(page)).port
        assert answers("127.0.0.1", port)
        assert not answers("127.0.0.2", port)
        other = build_page(replace(run, capping=None, experiment=None), *loaded)
        with pytest.raises(PageError, match=rf"127\.0\.0\.1:{port}: .* \(--port\)"):
            launch(other, port=port)
    with closing(other):
        assert answers("127.0.0.2", urlsplit(launch(other, host="127.0.0.2")).port)


def test_serve_says_where_and_waits(run, loaded, monkeypatch, capsys):
    def visit(page):
        with closing(page), urlopen(page.local_url) as answer:
            assert answer.status == 200

    monkeypatch.setattr("gradio.Blocks.block_thread", visit)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(run, *loaded, port=port)
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        message = "no Chromium found: apt-get install --no-install-recommends chromium"
        (pytest.fail if os.environ.get("AXISKIT_REQUIRE_BROWSER") else pytest.skip)(message)
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with (
        sync_playwright() as started,
        started.chromium.launch(executable_path=program, args=quiet) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def reached():
    """Every address that this process connects to or looks up."""
    addresses = []

    def note(event, arguments):
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            addresses.append(str(arguments[1][0]))
        elif event == "socket.getaddrinfo":
            addresses.append(str(arguments[0]))

    sys.addaudithook(note)
    return addresses


@pytest.fixture(scope="module")
def address(browser, reached, run, loaded):
    """Where the page is; the browser comes first, so that nothing waits for a missing one."""
    with closing(build_page(run, *loaded)) as served:
        yield launch(served)


@pytest.fixture
def page(browser, address, reached):
    """A tab with the page; whatever that asks for elsewhere is refused and told."""
    elsewhere, problems = [], []

    def only_here(route):
        if route.request.url.startswith(address):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    with browser.new_page(viewport={"width": 1300, "height": 900}) as tab:
        tab.route("**/*", only_here)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(address)
        tab.locator("#chart .js-plotly-plot").wait_for(timeout=60_000)
        yield tab
    assert elsewhere == problems == []
    assert reached  # the page looks whether it answers
    assert all(host.startswith("127.") for host in reached)


def lines_on(page):
    """Name and heights of each line of the chart."""
    return dict(
        page.evaluate(
            "document.querySelector('#chart .js-plotly-plot')"
            ".data.map(line => [line.name, Array.from(line.y)])"
        )
    )


def send(page, text, turn):
    page.locator("#message textarea").fill(text)
    page.get_by_role("button", name="Send").click()
    page.get_by_text(f"Turn {turn}: unsteered").wait_for(timeout=60_000)


def load(page, path):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load transcript").click()
    chooser.value.set_files(path)


def said(page, side):
    return page.locator(f"#{side}-side [data-testid=bot]").all_inner_texts()


@pytest.mark.browser
def test_talk_in_the_browser(page):
    assert lines_on(page) == {"unsteered": [], "capped": []}
    send(page, "Why is the sky blue?", 1)
    page.wait_for_function("document.querySelectorAll('#chart .points path').length == 2")
    assert [len(heights) for heights in lines_on(page).values()] == [1, 1]
    assert [len(said(page, side)) for side in ("unsteered", "capped")] == [1, 1]
    assert all(said(page, side)[0].strip() for side in ("unsteered", "capped"))
    assert page.get_by_label("System prompt").is_disabled()

    def floor():
        shapes = "document.querySelector('#chart .js-plotly-plot').layout.shapes"
        return page.evaluate(f"{shapes}.find(shape => shape.type == 'line').y0")

    before = floor()
    slider = page.locator("#floor-shift input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    page.get_by_text("capped by layers_1:3-p0.25, floors +0.1").wait_for()
    page.wait_for_function(
        "before => document.querySelector('#chart .js-plotly-plot').layout.shapes"
        ".find(shape => shape.type == 'line').y0 > before",
        arg=before,
    )
    send(page, "And at night?", 2)
    assert [len(heights) for heights in lines_on(page).values()] == [2, 2]
    assert [len(said(page, side)) for side in ("unsteered", "capped")] == [2, 2]
    for end in ("Clear", "New conversation"):
        page.get_by_role("button", name=end).first.click()
        page.wait_for_function(
            "document.querySelector('#chart .js-plotly-plot').data.every(line => !line.y.length)"
        )
        assert said(page, "unsteered") == said(page, "capped") == []
        assert page.get_by_label("System prompt").is_enabled()
        send(page, "Once more?", 1)


@pytest.mark.browser
def test_stop_in_the_browser(page, loaded):
    """Tokens are handed out one by one, so that the answer is not over before it is stopped."""
    tokens = threading.Semaphore(8)

    def wait(*_):
        tokens.acquire(timeout=60)

    hook = loaded[0].register_forward_pre_hook(wait)
    message = page.locator("#message textarea")
    try:
        message.fill("Why?")
        page.get_by_role("button", name="Send").click()
        page.locator("#unsteered-side [data-testid=bot]").wait_for(timeout=30_000)
        assert message.input_value() == ""
        page.get_by_role("button", name="Stop").click()
        for _ in range(30):
            tokens.release()
            page.wait_for_timeout(100)
            if message.input_value():
                break
    finally:
        hook.remove()
        tokens.release(1000)
    assert message.input_value() == "Why?"
    assert said(page, "unsteered") == []
    assert not any(lines_on(page).values())
    send(page, "Why?", 1)


@pytest.mark.browser
def test_load_a_transcript_in_the_browser(page, run, loaded, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"conversation": TRANSCRIPT[:1] * 2}))
    load(page, bad)
    page.get_by_text("user and assistant take turns").wait_for(timeout=30_000)
    good = tmp_path / "voice.json"
    good.write_text(json.dumps({"model": "another", "conversation": TRANSCRIPT}))
    load(page, good)
    page.get_by_text("transcript: voice").first.wait_for(timeout=30_000)
    expected = [
        turn[f"layer_{TARGET}"]
        for turn in project_turns(*loaded, TRANSCRIPT, run.axis, LAYERS, TARGET)
    ]
    assert lines_on(page)["transcript: voice"] == pytest.approx(expected, abs=1e-4)
