"""The command line without a model: help, errors, and what a file is."""

import json
import os
import pickle
import subprocess
import sys
import tomllib
from importlib import import_module

import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import axiskit
from axiskit.artifacts import stage_metadata, write_pt, write_table
from axiskit.axis import save_axis
from axiskit.cli import app
from axiskit.errors import ArtifactError
from axiskit.runs import load_run, newest_run
from axiskit.terminal import _bar, _scale

COMMANDS = ["project", "generate", "chat", "inspect", "estimate", "app"]
MODEL = {
    "name": "m",
    "path": "org/m",
    "revision": None,
    "fingerprint": "f00d",
    "dtype": "float32",
    "hidden_size": 3,
    "n_layers": 4,
}


def run(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(a) for a in arguments], **kwargs)


def metadata(stage="compute_axis", **more):
    return stage_metadata(stage, [{"stages": {}, "model": MODEL}]) | {"layers": [0, 1, 2, 3]} | more


def a_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_installed_command_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["axiskit"].partition(":")
    assert getattr(import_module(module), name) is app


def test_version():
    assert run("--version").stdout == f"axiskit {axiskit.__version__}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_help_has_examples(command):
    text = run(*command, "--help").stdout
    assert f"$ axiskit {' '.join(command)}" in text


def test_no_command_shows_help_and_an_unknown_one_is_a_usage_error():
    assert "Commands" in run().output
    assert run("projekt").exit_code == 2


@pytest.mark.parametrize("command", [[], ["inspect"], ["project"], ["app"]])
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom axiskit.cli import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\nprint('modules', *sys.modules)"
    )
    out = a_process(code, *command, "--help").stdout
    loaded = set(out.partition("modules ")[2].split())
    assert "axiskit.cli" in loaded
    assert not loaded & {"torch", "transformers", "pandas", "pyarrow", "numpy", "gradio", "plotly"}


def test_the_page_without_gradio_says_how_to_install_it():
    code = "import sys\nsys.modules['gradio'] = None\nfrom axiskit.cli import app\napp()"
    found = a_process(code, "app")
    assert found.returncode == 1
    assert found.stderr.startswith("error: gradio is not installed")
    assert found.stderr.endswith("; pip install 'axiskit[app]'\n")
    assert found.stderr.count("\n") == 1


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_holds_code_is_refused_and_the_code_is_not_run(tmp_path, is_zip):
    marker, evil = tmp_path / "it-ran", tmp_path / "evil.pt"
    payload = Payload(f"touch {marker}")
    if is_zip:
        torch.save({"axis": torch.ones(4, 3), "metadata": payload}, evil)
    else:
        evil.write_bytes(pickle.dumps(payload))
    command = ["inspect"] if is_zip else ["generate", "hi", "--axis"]
    found = a_process("from axiskit.cli import app\napp()", *command, evil)
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: {evil}: ")
    assert found.stderr.count("\n") == 1
    assert not marker.exists()
    torch.load(evil, weights_only=False) if is_zip else pickle.loads(evil.read_bytes())
    assert marker.exists()  # the payload is a real one


def write_one_of_each(folder):
    """Name of the file: its kind, and words that its description must have."""
    tensor = torch.arange(12.0).reshape(4, 3)
    save_axis(folder / "axis.pt", tensor, metadata(n_roles=7))
    torch.save(tensor, folder / "published.pt")
    vectors = {"v": {"vector": -tensor[1], "layer": 1}}
    experiments = [{"id": "layers_1:2-p0.25", "interventions": [{"vector": "v", "cap": -1.0}]}]
    write_pt(folder / "cap.pt", {"vectors": vectors, "experiments": experiments})
    write_pt(
        folder / "role_vectors.pt",
        {
            "roles": ["bard", "tree"],
            "vectors": torch.ones(2, 4, 3),
            "default": tensor,
            "layers": [0, 1, 2, 3],
            "metadata": metadata("compute_role_vectors"),
        },
    )
    write_pt(
        folder / "shard.pt",
        {
            "rollout_id": ["a/0/0"],
            "activations": torch.ones(1, 4, 3, dtype=torch.bfloat16),
            "layers": [0, 1, 2, 3],
            "n_tokens": [5],
            "metadata": metadata("extract_activations"),
        },
    )
    write_table(
        folder / "floors.parquet",
        pa.table({"layer": [0, 1], "floor_quantile": [0.5, 0.5], "floor": [1.0, 2.0]}),
        metadata("calibrate_capping"),
    )
    (folder / "talk.json").write_text(
        json.dumps(
            {
                "model": "org/m",
                "condition": "capped",
                "conversation": [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": "!"},
                ],
            }
        )
    )
    return {
        "axis.pt": ("Assistant Axis", ["4 x 3 [layer, hidden], float32", "0 to 3", "org/m"]),
        "published.pt": ("bare tensor", ["4 x 3", "not said in the file"]),
        "cap.pt": ("capping config", ["layers_1:2-p0.25", "hidden size 3"]),
        "role_vectors.pt": ("role vectors", ["2 x 4 x 3", "bard, tree", "f00d"]),
        "shard.pt": ("response activations", ["1 x 4 x 3", "bfloat16"]),
        "floors.parquet": ("table of capping floors", ["2", "floor_quantile"]),
        "talk.json": ("conversation", ["org/m", "capped"]),
    }


def test_inspect_says_what_each_file_is_and_where_it_came_from(tmp_path):
    for name, (kind, words) in write_one_of_each(tmp_path).items():
        found = run("inspect", tmp_path / name)
        assert found.exit_code == 0, found.output
        first, *_ = found.stdout.splitlines()
        assert first == f"{tmp_path / name}: {kind}"
        for word in words:
            assert word in found.stdout
    assert "compute_axis (recipe 1)" in run("inspect", tmp_path / "axis.pt").stdout


def test_inspect_for_machines_gives_the_provenance_in_full(tmp_path):
    write_one_of_each(tmp_path)
    found = json.loads(run("inspect", tmp_path / "axis.pt", "--json").stdout)
    assert found["kind"] == "Assistant Axis"
    assert found["metadata"] == metadata(n_roles=7)
    found = json.loads(run("inspect", tmp_path / "floors.parquet", "--json").stdout)
    assert found["facts"]["columns"] == ["layer", "floor_quantile", "floor"]
    assert found["metadata"]["model"] == MODEL


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "no such file"),
        ("torn.pt", b"PK\x03\x04", "cannot be read as a .pt file"),
        ("torn.parquet", b"PAR1", "cannot be read as Parquet"),
        ("torn.json", b"{", "cannot be parsed as JSON"),
        ("other.json", b'{"a": 1}', "conversation: Field required"),
        ("notes.txt", b"hi", "ends in '.txt', .pt, .parquet, .json can be described"),
    ],
)
def test_files_that_cannot_be_described_are_one_line_on_stderr(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = run("inspect", tmp_path / name)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith(f"error: {tmp_path / name}: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_damaged_and_foreign_tensors_are_told(tmp_path):
    write_pt(tmp_path / "a.pt", {"weight": torch.ones(2)})
    assert "no kind of file that axiskit knows" in run("inspect", tmp_path / "a.pt").stderr
    write_pt(tmp_path / "b.pt", {"axis": "north"})
    assert "kind 'Assistant Axis', but its parts" in run("inspect", tmp_path / "b.pt").stderr
    write_pt(tmp_path / "c.pt", {"axis": torch.ones(2, 3), "metadata": "mine"})
    assert "metadata: found str, a mapping needed" in run("inspect", tmp_path / "c.pt").stderr


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    save_axis(tmp_path / "axis.pt", torch.ones(4, 3), metadata(model=MODEL | {"name": "\x1b[2J"}))
    assert "\x1b" not in run("inspect", tmp_path / "axis.pt").stdout


def test_the_newest_axis_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"results: no folder with an axis\.pt"):
        newest_run()
    assert "results: no folder with an axis.pt" in run("project", "talk.json").stderr
    for age, name in enumerate(["new", "old"]):
        save_axis(tmp_path / "results" / name / "axis.pt", torch.ones(4, 3), metadata())
        os.utime(tmp_path / "results" / name / "axis.pt", (1e9 - age, 1e9 - age))
    assert newest_run().name == "new"
    assert "axis: results/new" in run("project", "talk.json").stderr


def test_a_run_knows_what_lies_beside_its_axis(tmp_path):
    save_axis(tmp_path / "axis.pt", torch.ones(4, 3), metadata())
    bare = load_run(tmp_path)
    assert (bare.target_layer, bare.capping, bare.experiment, bare.default_band) == (2, *[None] * 3)
    write_table(
        tmp_path / "layers.parquet",
        pa.table({"layer": [0, 1, 2, 3]}),
        metadata("analyse_persona_space", target_layer=3),
    )
    rows = {"kind": ["default"] * 11 + ["role"], "layer_3": [float(i) for i in range(11)] + [99.0]}
    path = tmp_path / "projections.parquet"
    write_table(path, pa.table(rows), metadata("project_responses"))
    full = load_run(tmp_path / "axis.pt")
    assert full.target_layer == 3
    assert full.default_band == pytest.approx((1.0, 9.0))
    assert full.band_at(0) is None
    foreign = metadata("project_responses", model=MODEL | {"name": "another"})
    write_table(path, pa.table(rows), foreign)
    with pytest.raises(ArtifactError, match="name is 'm' in one and 'another' in the other"):
        load_run(tmp_path)


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1),
    st.none() | st.tuples(st.floats(-1e3, 0), st.floats(0, 1e3)),
)
def test_bars_are_one_width_with_one_mark(values, band):
    scale = _scale(values, band)
    bars = [_bar(value, band, scale).plain for value in values]
    assert {len(bar) for bar in bars} == {30}
    for value, bar in zip(values, bars, strict=True):
        assert bar.count("●") == (value is not None)
    marks = [(v, b.index("●")) for v, b in zip(values, bars, strict=True) if v is not None]
    assert [place for _, place in sorted(marks)] == sorted(place for _, place in marks)
