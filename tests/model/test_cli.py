"""The command line with a tiny model: its numbers are those of the library."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
from conftest import HIDDEN, N_LAYERS, save_tiny_model, tiny_facts
from typer.testing import CliRunner

from axiskit import ActivationSteering, generate_response, load_axis, load_model, terminal
from axiskit.artifacts import stage_metadata, write_table
from axiskit.axis import save_axis
from axiskit.capping import calibrate_capping
from axiskit.cli import app
from axiskit.models import model_fingerprint
from axiskit.runs import load_run, load_run_model
from axiskit.trajectories import project_turns
from axiskit.transcripts import load_transcript

LAYERS = list(range(N_LAYERS))
SHORT = ["--max-new-tokens", "12"]


def save_run(folder, model_path):
    """An axis, projections of the default (higher) and of roles, and a capping config."""
    facts = tiny_facts(model_path)
    metadata = stage_metadata("compute_axis", [{"stages": {}, "model": facts}])
    metadata["layers"] = LAYERS
    random = torch.Generator().manual_seed(0)
    axis = torch.randn(N_LAYERS, HIDDEN, generator=random)
    save_axis(folder / "axis.pt", axis, metadata)
    rows = {
        "rollout_id": [str(i) for i in range(40)],
        "role": ["default"] * 20 + ["bard"] * 20,
        "kind": ["default"] * 20 + ["role"] * 20,
    }
    for layer in LAYERS:
        noise = torch.randn(40, generator=random)
        rows[f"layer_{layer}"] = (noise + torch.tensor([1.0, -1.0]).repeat_interleave(20)).tolist()
    metadata = stage_metadata("project_responses", [metadata]) | {"layers": LAYERS}
    write_table(folder / "projections.parquet", pa.table(rows), metadata)
    calibrate_capping(
        projections_path=folder / "projections.parquet",
        axis_path=folder / "axis.pt",
        capping_config_path=folder / "capping_config.pt",
        capping_path=folder / "capping.parquet",
        widths=[2],
        step=1,
        floor_quantiles=[0.75],
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    return save_run(tmp_path_factory.mktemp("results") / "tiny", tiny_model)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, dtype="float32")


@pytest.fixture
def transcript(tmp_path):
    messages = [
        {"role": "system", "content": "You are a tree."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "The wind in my leaves."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Hm."},
        {"role": "assistant", "content": "Rings upon rings."},
    ]
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"model": "any", "conversation": messages}))
    return path


def run(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(a) for a in arguments], **kwargs)


def test_project_prints_the_library_s_numbers(folder, loaded, transcript):
    axis = load_axis(folder / "axis.pt")
    for arguments, layer in ((["--layer", 1], 1), ([], N_LAYERS // 2)):
        expected = project_turns(*loaded, load_transcript(transcript).messages, axis, LAYERS, layer)
        found = run("project", transcript, "--axis", folder, "--json", *arguments)
        assert found.exit_code == 0, found.output
        report = json.loads(found.stdout)
        assert report["layer"] == layer
        assert report["default_band"] == list(load_run(folder).band_at(layer))
        [text] = report["transcripts"]
        assert [t["n_tokens"] for t in text["turns"]] == [22, 0, 17]
        values = [t["projection"] for t in text["turns"]]
        assert values == pytest.approx([t[f"layer_{layer}"] for t in expected], abs=1e-5)
        shown = run("project", transcript, "--axis", folder, *arguments).stdout
        assert all((f"{value:.2f}" if value is not None else "empty") in shown for value in values)


def test_project_fails_below_a_floor_with_a_code_of_its_own(folder, transcript):
    found = run("project", transcript, "--axis", folder, "--json")
    first, _, last = (t["projection"] for t in json.loads(found.stdout)["transcripts"][0]["turns"])
    for floor, code in ((min(first, last) - 0.1, 0), (max(first, last) + 0.1, 3)):
        found = run("project", transcript, "--axis", folder, f"--fail-below={floor}")
        assert found.exit_code == code
        assert (f"turn 1 projects {first:.2f}" in found.stderr) == bool(code)
        assert ("first below" in found.stdout) == bool(code)
        assert "turn 2 projects" not in found.stderr  # it is empty


def test_first_crossing_of_the_band_is_marked(folder, transcript):
    found = json.loads(run("project", transcript, "--axis", folder, "--json").stdout)
    low, [text] = found["default_band"][0], found["transcripts"]
    values = [t["projection"] for t in text["turns"]]
    below = [i for i, value in enumerate(values) if value is not None and value < low]
    assert text["first_crossing"] == (below[0] if below else None)
    lines = run("project", transcript, "--axis", folder).stdout.splitlines()
    marked = [i for i, line in enumerate(lines[2:]) if "first below" in line]
    assert marked == below[:1]


def test_a_real_process_gives_clean_json_and_the_exit_code(folder, transcript):
    code = "from axiskit.cli import app\napp()"
    found = subprocess.run(
        [
            *(sys.executable, "-c", code, "project", transcript, "--axis", folder),
            *("--json", "--fail-below", "1e9"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 3
    assert len(json.loads(found.stdout)["transcripts"]) == 1
    assert found.stderr.splitlines()[0].startswith(f"{transcript}: turn 1 projects")


def test_generate_answers_as_the_library_does(folder, loaded):
    messages = [{"role": "system", "content": "Sing."}, {"role": "user", "content": "Hello?"}]
    expected = generate_response(*loaded, messages, 12, seed=5)
    arguments = ["generate", "Hello?", "--system", "Sing.", "--seed", 5, "--axis", folder, *SHORT]
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["response"] == expected
    assert found["stats"] is found["intervention"] is None
    spoken = [*messages, {"role": "assistant", "content": expected}]
    [turn] = project_turns(*loaded, spoken, load_axis(folder / "axis.pt"), LAYERS, 2)
    assert found["projection"] == pytest.approx(turn["layer_2"], abs=1e-5)
    plain = run(*arguments)
    assert plain.exit_code == 0
    assert plain.stdout == terminal.plain(expected) + "\n"
    assert f"projection {found['projection']:.2f}" in plain.stderr


def test_question_from_stdin(folder):
    arguments = ["--seed", 1, "--axis", folder, "--json", *SHORT]
    piped = run("generate", "-", *arguments, input="Hello?\n")
    assert json.loads(piped.stdout) == json.loads(run("generate", "Hello?", *arguments).stdout)
    assert run("generate", "-", *arguments, input="\n").exit_code == 2


def test_steering_adds_the_axis_times_c(folder, loaded):
    arguments = ["generate", "Hello?", "--temperature", 0, "--axis", folder, "--json", *SHORT]
    plain = json.loads(run(*arguments).stdout)
    none = json.loads(run(*arguments, "--steer", 0).stdout)
    assert none["response"] == plain["response"]
    assert none["stats"]["fired"] == 0
    steered = json.loads(run(*arguments, "--steer", -6, "--layer", 1).stdout)
    assert steered["intervention"] == {"type": "addition", "layer": 1, "coefficient": -6}
    axis = load_axis(folder / "axis.pt")
    assert steered["stats"]["mean_shift"] == pytest.approx(6 * float(axis[1].norm()), rel=1e-3)
    with ActivationSteering(loaded[0], axis[1], layer_indices=1, coefficients=-6.0):
        messages = [{"role": "user", "content": "Hello?"}]
        expected = generate_response(*loaded, messages, 12, do_sample=False)
    assert steered["response"] == expected != plain["response"]


def test_capping_shows_what_it_did(folder):
    arguments = ["generate", "Hello?", "--seed", 3, "--axis", folder, *SHORT]
    found = json.loads(run(*arguments, "--cap", "layers_1:3-p0.25", "--json").stdout)
    assert found["intervention"]["experiment"] == "layers_1:3-p0.25"
    assert found["intervention"]["floors"].keys() == {"1", "2"}
    stats = found["stats"]
    assert 0 < stats["fired"] <= 1
    assert stats["mean_relative_shift"] > 0
    shown = run(*arguments, "--cap", "auto")
    assert shown.exit_code == 0, shown.output
    assert f"capped by {load_run(folder).experiment}: changed " in shown.stderr
    assert "of their norm" in shown.stderr


def test_a_chat_is_measured_saved_and_projected_again(folder, tmp_path):
    saved = tmp_path / "talk.json"
    said = f"Hello?\n\n/etc/hosts is a file\n/save {saved}\n/exit\nnot said\n"
    arguments = [
        "chat",
        "--axis",
        folder,
        "--system",
        "Sing.",
        "--seed",
        4,
        "--cap",
        "auto",
        *SHORT,
    ]
    found = run(*arguments, "--json", input=said)
    assert found.exit_code == 0, found.output
    turns = [json.loads(line) for line in found.stdout.splitlines()]
    assert [turn["prompt"] for turn in turns] == ["Hello?", "/etc/hosts is a file"]
    assert turns[0]["seed"] == 4 != turns[1]["seed"]
    transcript = load_transcript(saved)
    assert transcript.messages[0] == {"role": "system", "content": "Sing."}
    answers = [m["content"] for m in transcript.messages if m["role"] == "assistant"]
    assert answers == [turn["response"] for turn in turns]
    read = json.loads(run("project", saved, "--axis", folder, "--json").stdout)
    again = [turn["projection"] for turn in read["transcripts"][0]["turns"]]
    assert again == pytest.approx([turn["projection"] for turn in turns], abs=1e-4)
    shown = run(*arguments, input=said).stdout
    for turn in turns:
        assert f"[turn {turn['turn'] + 1}: projection {turn['projection']:.2f} " in shown
        assert f"changed {turn['stats']['fired']:.0%} of tokens" in shown


def test_a_chat_survives_what_goes_wrong_in_it(folder, tmp_path):
    said = f"/save {tmp_path}/a.json\n/sav\n/save\n{'long ' * 200}\nHello?\n"
    found = run("chat", "--axis", folder, "--json", *SHORT, input=said)
    assert found.exit_code == 1
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    for error, words in zip(
        errors,
        ["nothing has been said", "no such command", "no file named", "reads 512"],
        strict=True,
    ):
        assert words in error
    [turn] = map(json.loads, found.stdout.splitlines())
    assert (turn["turn"], turn["prompt"]) == (0, "Hello?")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--cap", "layers_0:9-p0.25"], 1, "experiment 'layers_0:9-p0.25': not in the capping"),
        (["--steer", "1", "--layer", "9"], 1, "layer 9: the axis in"),
        (["--steer", "1", "--cap", "auto"], 2, "give --steer or --cap, not both"),
        (["--layer", "1"], 2, "says where --steer acts"),
        (["--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["--axis", "nowhere"], 1, "nowhere: no such file or folder"),
        (["--model", "no/such/folder"], 1, "no/such/folder: no such model folder"),
    ],
)
def test_what_cannot_be_done_is_told(folder, arguments, code, message):
    found = run("generate", "Hello?", "--axis", folder, *arguments)
    assert found.exit_code == code
    assert message in found.stderr
    assert found.stdout == ""
    assert code == 2 or found.stderr.count("\n") == 1


def test_another_model_is_refused_and_force_overrides_only_its_files(folder, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    arguments = ["generate", "Hello?", "--axis", folder, "--model", other, *SHORT]
    refused = run(*arguments)
    assert refused.exit_code == 1
    for path in (other, load_run(folder).model_facts["path"]):
        assert model_fingerprint(str(path)) in refused.stderr
    assert run(*arguments, "--force").exit_code == 0
    for size, value, found in (
        ("num_hidden_layers", 3, f"layers 3, that of the axis in {folder} is 4"),
        ("hidden_size", 64, f"hidden size 64, that of the axis in {folder} is 32"),
    ):
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {size: value}))
        for force in ([], ["--force"]):
            refused = run(*arguments, *force)
            assert refused.exit_code == 1
            assert found in refused.stderr
        (other / "config.json").write_text(json.dumps(config))


def test_a_published_axis_needs_its_model_named(folder, tiny_model, tmp_path):
    torch.save(load_axis(folder / "axis.pt"), tmp_path / "assistant_axis.pt")
    arguments = ["generate", "Hello?", "--axis", tmp_path, "--json", *SHORT]
    assert "does not say which model" in run(*arguments).stderr
    found = json.loads(run(*arguments, "--model", tiny_model, "--dtype", "float32").stdout)
    assert found["layer"] == N_LAYERS // 2
    assert found["default_band"] is None
    assert "no capping_config.pt in" in run(*arguments, "--cap", "auto").stderr


def test_a_run_that_was_moved_finds_its_model(tiny_model, tmp_path, monkeypatch):
    """Its path is relative to where the run was started."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "results" / "tiny" / "model")
    save_run(tmp_path / "results" / "tiny", "results/tiny/model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_folder = tmp_path / "results" / "tiny"
    model, _ = load_run_model(load_run(run_folder))
    assert model.name_or_path == str(tmp_path / "results/tiny/model")
    run_folder.rename(tmp_path / "moved")
    model, _ = load_run_model(load_run(tmp_path / "moved"))
    assert model.name_or_path == str(tmp_path / "moved" / "model")
