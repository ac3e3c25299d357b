"""The whole workflow on a tiny model: it ends, resumes, and re-runs what a change calls for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, save_tiny_model

from axiskit.artifacts import load_activations, read_table
from axiskit.axis import load_axis
from axiskit.capping import capping_floors, load_capping_config
from axiskit.describe import describe
from axiskit.disk import PLACES, size_on_disk
from axiskit.preflight import estimate_plan, read_plan
from axiskit.rollouts import shard_of
from axiskit.traits import load_trait_vectors
from axiskit.vectors import load_role_vectors

pytestmark = pytest.mark.workflow

ROLE_NAMES = ["ghost", "lawyer", "pirate", "poet", "tree"]
RESULTS = Path("results") / "tiny"


def snakemake(folder, *arguments, check=True):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    run = subprocess.run(
        [*command, "--cores", "2", *arguments], capture_output=True, text=True, check=False
    )
    if check:
        assert run.returncode == 0, run.stdout + run.stderr
    return run


def make_project(folder, **changes):
    """A folder with a tiny model, a few of the shipped roles, questions and a config."""
    save_tiny_model(folder / "model", "qwen2")
    (folder / "roles").mkdir()
    for name in [*ROLE_NAMES, "default"]:
        shutil.copy(ROOT / "resources" / "roles" / f"{name}.yaml", folder / "roles")
    questions = (ROOT / "resources" / "questions.jsonl").read_text().splitlines()[:4]
    (folder / "questions.jsonl").write_text("\n".join(questions) + "\n")
    (folder / "conversations").mkdir()
    script = {"name": "talk", "domain": "coding", "description": "Two words.", "turns": ["a", "b"]}
    (folder / "conversations" / "talk.yaml").write_text(yaml.safe_dump(script))
    recorded = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / "recorded.json").write_text(json.dumps({"conversation": recorded}))
    config = {
        "model": {"name": "tiny", "path": "model"},
        "roles": {"dir": "roles", "include": "all"},
        "questions": {"file": "questions.jsonl", "count": 3},
        "default_prompts": 2,
        "generation": {"max_new_tokens": 8},
        "judge": {"thresholds": [-1000.0, -999.0], "max_unscored": 1.0},
        "vectors": {"min_responses": 1, "min_roles": 3},
        "capping": {"widths": [2], "step": 1, "experiment": "auto"},
        "conversations": {
            "dir": "conversations",
            "include": "all",
            "extra_transcripts": ["recorded.json"],
            "max_new_tokens": 8,
        },
        "shards": 2,
    }
    for section, values in changes.items():
        config[section] = config.get(section, {}) | values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A project after its first run."""
    folder = make_project(tmp_path_factory.mktemp("finished"))
    run = snakemake(folder)
    assert "Assistant Axis of tiny (4 layers, hidden size 32)" in run.stderr
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it to change; times are kept, as they trigger."""
    subprocess.run(["cp", "-a", f"{finished}/.", str(tmp_path)], check=True)
    return tmp_path


def planned(folder):
    """Rules that a run would execute, with their number of jobs."""
    output = snakemake(folder, "-n").stdout
    table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", output, re.S)
    if table is None:
        assert "Nothing to be done" in output
        return {}
    jobs = dict(line.split() for line in table.group(1).splitlines())
    jobs.pop("all", None)
    return {name: int(count) for name, count in jobs.items()}


def test_the_disk_is_estimated_within_a_factor_of_two(finished):
    plan = read_plan([finished / "config.yaml"], directory=finished)
    found = estimate_plan(plan)
    for stage in found.stages:
        actual = size_on_disk(finished / RESULTS / place for place in PLACES[stage.name])
        assert stage.disk is not None
        assert 0.5 < stage.disk / actual < 2, (stage.name, stage.disk, actual)


def test_a_run_that_does_not_fit_on_the_disk_is_refused(tmp_path):
    folder = make_project(tmp_path)
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 10**15}))
    run = snakemake(folder, check=False)
    assert run.returncode == 1
    assert "DiskError: results/tiny: " in run.stderr
    assert "GB of it by extract_activations" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / RESULTS / "responses").exists()
    # switched off, a job starts, and fails for a reason of its own
    edit_config("resources", "check_disk", False)(folder)
    edit_config("activations", "layers", [99])(folder)
    again = snakemake(folder, check=False)
    assert "DiskError" not in again.stderr
    assert "ModelError: layer 99" in again.stderr


PLOTS = {
    "plot_roles_on_axis",
    "plot_axis_pc1_cosine",
    "plot_variance_explained",
    "plot_persona_space",
}
AFTER_SPACE = PLOTS | {"summarise_axis"}
AFTER_FLOORS = {"hold_conversation", "project_conversations", "plot_trajectories"}
AFTER_VECTORS = (
    AFTER_SPACE
    | AFTER_FLOORS
    | {"compute_axis", "project_responses", "analyse_persona_space", "calibrate_capping"}
)
AFTER_SCORES = AFTER_VECTORS | {"compute_role_vectors"}
AFTER_RESPONSES = AFTER_SCORES | {"judge_responses", "extract_activations"}


def edit_config(section, key, value):
    def edit(folder):
        path = folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        if section is None:
            config[key] = value
        else:
            config.setdefault(section, {})[key] = value
        path.write_text(yaml.safe_dump(config))

    return edit


def edit_role(folder):
    path = folder / "roles" / "poet.yaml"
    path.write_text(path.read_text().replace("poet", "bard").replace("name: bard", "name: poet"))


def touch_unrelated(folder):
    """What a git checkout does: files come back with new times and the same content."""
    for path in [folder / "roles" / "poet.yaml", folder / "questions.jsonl"]:
        path.write_text(path.read_text())
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("edit", "expected", "jobs"),
    [
        pytest.param(lambda folder: None, set(), {}, id="nothing"),
        pytest.param(touch_unrelated, set(), {}, id="checkout of unrelated files"),
        pytest.param(edit_config("generation", "batch_size", 3), set(), {}, id="batch size"),
        pytest.param(
            edit_config("activations", "tokens_per_batch", 99), set(), {}, id="tokens per batch"
        ),
        pytest.param(
            edit_config("judge", "thresholds", [0.0, 0.5]),
            AFTER_SCORES | {"judge_responses"},
            {"judge_responses": 2, "hold_conversation": 2},
            id="judge threshold",
        ),
        pytest.param(
            edit_role,
            AFTER_RESPONSES | {"generate_responses"},
            {"generate_responses": 1, "judge_responses": 1, "extract_activations": 1},
            id="one role file",
        ),
        pytest.param(
            edit_config("generation", "temperature", 0.5),
            AFTER_RESPONSES | {"generate_responses"},
            {"generate_responses": 2, "hold_conversation": 3},
            id="temperature",
        ),
        pytest.param(
            edit_config("questions", "count", 4),
            AFTER_RESPONSES | {"generate_responses"},
            {"generate_responses": 2, "hold_conversation": 2},
            id="more questions",
        ),
        pytest.param(
            edit_config("activations", "layers", [1, 2, 3]),
            AFTER_SCORES | {"extract_activations"},
            {"extract_activations": 2, "hold_conversation": 2},
            id="layers",
        ),
        pytest.param(edit_config("vectors", "min_responses", 2), AFTER_SCORES, {}, id="vectors"),
        pytest.param(
            edit_config("model", "target_layer", 1),
            AFTER_SPACE | AFTER_FLOORS | {"analyse_persona_space"},
            {"hold_conversation": 1},
            id="target layer",
        ),
        pytest.param(
            edit_config("capping", "floor_quantiles", [0.6]),
            AFTER_FLOORS | {"calibrate_capping"},
            {"hold_conversation": 1},
            id="floor quantile",
        ),
        pytest.param(
            edit_config("conversations", "away_coefficient", -2.0),
            AFTER_FLOORS,
            {"hold_conversation": 1},
            id="away coefficient",
        ),
        pytest.param(
            edit_config("conversations", "max_turns", 1),
            AFTER_FLOORS,
            {"hold_conversation": 3},
            id="turns",
        ),
        pytest.param(
            edit_config("figures", "max_labels", 3),
            {"plot_roles_on_axis", "plot_persona_space"},
            {},
            id="figures",
        ),
    ],
)
def test_what_runs_again_after_a_change(project, edit, expected, jobs):
    edit(project)
    found = planned(project)
    assert set(found) == expected
    assert jobs.items() <= found.items()


def test_every_file_is_there_and_fits(finished):
    results = finished / RESULTS
    axis = load_axis(results / "axis.pt")
    assert axis.shape == (4, 32)
    vectors = load_role_vectors(results / "role_vectors.pt")
    assert vectors["roles"] == ROLE_NAMES
    assert torch.allclose(axis, vectors["default"] - vectors["vectors"].mean(0), atol=1e-5)
    table, metadata = read_table(results / "roles.parquet")
    rows = {row["role"]: row for row in table.to_pylist()}
    assert rows["default"]["kind"] == "default"
    assert rows["pirate"]["n_rollouts"] == 6
    assert metadata["stages"]["generate_responses"]["max_new_tokens"] == 8
    assert set(metadata["stages"]) == {
        *("generate_responses", "judge_responses", "extract_activations", "compute_role_vectors")
    }
    projections = read_table(results / "projections.parquet")[0].to_pandas()
    default = projections.loc[projections["kind"] == "default", "layer_2"].mean()
    unit = axis[2] / axis[2].norm()
    assert default == pytest.approx(float(vectors["default"][2] @ unit), abs=1e-2)
    trajectories = read_table(results / "trajectories.parquet")[0].to_pandas()
    turns = trajectories.groupby(["conversation", "condition"])["turn"].count()
    assert turns.to_dict() == {
        ("talk", "unsteered"): 2,
        ("talk", "capped"): 2,
        ("talk", "away"): 2,
        ("recorded", "transcript"): 1,
    }
    config = load_capping_config(results / "capping_config.pt", axis)
    below = (projections["layer_1"] < capping_floors(config, "layers_1:3-p0.25")[1]).mean()
    assert below == pytest.approx(0.75, abs=0.03)
    for name in ("roles_on_axis", "persona_space", "trajectories"):
        assert "<svg" in (results / "figures" / f"{name}.svg").read_text()
        assert "plotly" in (results / "figures" / f"{name}.html").read_text()
    assert {path.name for path in finished.iterdir()} <= {
        *("model", "roles", "questions.jsonl", "config.yaml", "results", ".snakemake"),
        *("conversations", "recorded.json"),
    }


def test_report_holds_the_figures_and_their_captions(finished, tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(finished), "--configfile", str(finished / "config.yaml")]
    subprocess.run([*command, "--report", str(tmp_path / "report.html")], check=True)  # no --cores
    report = (tmp_path / "report.html").read_text()
    assert "roles_on_axis.svg" in report
    assert "middle 80" in report


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            edit_config("generation", "temprature", 1.0),
            "config.yaml: generation.temprature: unknown key; did you mean "
            "'generation.temperature'?",
        ),
        (edit_config("roles", "include", ["pirat"]), "no file for role 'pirat' (roles.include)"),
        (
            edit_config("capping", "experiment", "layers_0:3-p0.25"),
            "capping: experiment 'layers_0:3-p0.25': not among those that widths [2]",
        ),
        (
            lambda folder: (folder / "recorded.json").write_text("[]"),
            "recorded.json: conversation: ",
        ),
        (
            edit_config("conversations", "include", ["tal"]),
            "no file for conversation 'tal' (conversations.include); did you mean 'talk'?",
        ),
        (
            edit_config("traits", "include", ["clam"]),
            "no file for trait 'clam' (traits.include); did you mean 'calm'?",
        ),
        (edit_config("questions", "count", 9), "4 questions, 9 needed (questions.count)"),
        (
            lambda folder: (folder / "roles" / "tree.yaml").write_text(
                "name: tree\nkind: role\ngroup: nature\ndescription: ''\ninstructions: []\n"
            ),
            "tree.yaml: instructions: none found, at least one needed",
        ),
    ],
)
def test_bad_input_is_one_clear_error_before_any_work(project, edit, said):
    edit(project)
    run = snakemake(project, check=False)
    assert run.returncode != 0
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert "rule " not in run.stdout


def test_an_error_in_a_job_is_told_on_the_terminal_and_in_its_log(project):
    path = project / RESULTS / "activations" / "000.pt"
    with open(path, "rb+") as file:
        file.truncate(200)
    run = snakemake(project, "--forcerun", "compute_role_vectors", check=False)
    assert run.returncode != 0
    said = "activations/000.pt: cannot be read as a .pt file"
    assert said in run.stderr
    assert said in (project / RESULTS / "logs" / "compute_role_vectors.log").read_text()


def journal_keys(folder, stage):
    files = sorted((folder / RESULTS / "journal" / stage).glob("*.jsonl"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    return [json.loads(line)["key"] for line in lines if line.endswith("}")]


FUSE = """
import builtins, os, signal, sys, time

open_file = builtins.open


class Fused:
    def __init__(self, file, burn):
        self.file, self.burn, self.rows = file, burn, 0

    def __getattr__(self, name):
        return getattr(self.file, name)

    def flush(self):
        self.file.flush()
        self.rows += 1
        if self.rows == {rows}:
            exec(self.burn, globals())


def open(path, mode="r", *args, **kwargs):
    file = open_file(path, mode, *args, **kwargs)
    burn = next((code for part, code in {burns!r}.items() if part in str(path)), None)
    return Fused(file, burn) if mode == "a" and burn else file


builtins.open = open
"""


def plant_fuse(folder, rows, burns):
    """What Python runs first in every process of a workflow: code after so many rows of a file.

    From outside, a row of a tiny model is too short to be sure to hit.

    Args:
        folder: A project.
        rows: Rows that a job writes before its code runs.
        burns: Part of the path of the file with the rows -> code.

    Returns:
        What the environment of Snakemake needs.
    """
    (folder / "fuse").mkdir(exist_ok=True)
    (folder / "fuse" / "sitecustomize.py").write_text(FUSE.format(rows=rows, burns=burns))
    return {"PYTHONPATH": str(folder / "fuse")}


def kill_after(rows, stage, folder, target):
    """Run for a target; kill -9 the job that has written so many rows, and all else with it."""
    fuse = plant_fuse(folder, rows, {f"journal/{stage}/": "os.killpg(0, signal.SIGKILL)"})
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    run = subprocess.run(
        [*command, "--cores", "1", "--rerun-incomplete", f"{RESULTS}/{target}"],
        env=os.environ | fuse,
        start_new_session=True,
        capture_output=True,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stdout + run.stderr
    snakemake(folder, "--unlock")


def test_kill_9_in_generation_judging_and_extraction_then_the_same_command(finished, tmp_path):
    """The interrupted run ends with the results of a smooth one, and no row was made twice."""
    one_by_one = {"generation": {"batch_size": 1}, "activations": {"tokens_per_batch": 1}}
    torn = make_project(tmp_path / "torn", **one_by_one)
    kill_after(3, "generate_responses", torn, "responses/000.parquet")
    assert len(journal_keys(torn, "generate_responses")) == 3
    kill_after(3, "judge_responses", torn, "scores/000.parquet")
    assert len(journal_keys(torn, "judge_responses")) == 3
    kill_after(3, "extract_activations", torn, "activations/000.pt")
    checkpoints = torn / RESULTS / "journal" / "extract_activations"
    assert [len(path.read_text().split()) for path in checkpoints.glob("*/*.done")] == [3]
    snakemake(torn, "--rerun-incomplete", f"{RESULTS}/axis.pt")
    for stage, rows in (("generate_responses", 36), ("judge_responses", 30)):
        keys = journal_keys(torn, stage)
        assert len(keys) == len(set(keys)) == rows
    for shard in ("000", "001"):
        ours, expected = (
            read_table(folder / RESULTS / "responses" / f"{shard}.parquet")[0].to_pandas()
            for folder in (torn, finished)
        )
        assert ours.drop(columns="log_likelihood").equals(expected.drop(columns="log_likelihood"))
        ours, expected = (
            load_activations(folder / RESULTS / "activations" / f"{shard}.pt")
            for folder in (torn, finished)
        )
        assert ours["rollout_id"] == expected["rollout_id"]
        assert torch.allclose(
            ours["activations"].float(), expected["activations"].float(), rtol=2**-7
        )
    axes = [load_axis(folder / RESULTS / "axis.pt") for folder in (torn, finished)]
    assert torch.allclose(axes[0], axes[1], rtol=1e-2, atol=1e-2)  # stored in bfloat16


def test_traits_run_through_the_same_graph_and_touch_nothing_of_the_roles(project):
    include = ["calm", "petty", "witty"]
    edit_config("traits", "include", include)(project)
    shards = {f"traits-{shard_of(name, 2)}" for name in include}
    through_the_model = {"generate_responses", "judge_responses", "extract_activations"}
    assert planned(project) == {
        **dict.fromkeys(through_the_model, len(shards)),
        **dict.fromkeys(["compute_trait_vectors", "rank_traits", "plot_traits_on_axis"], 1),
    }
    snakemake(project)
    results = project / RESULTS
    paths = sorted((results / "responses").glob("traits-*.parquet"))
    assert {path.stem for path in paths} == shards
    rows = [row for path in paths for row in read_table(path)[0].to_pylist()]
    assert len(rows) == 3 * 2 * 6  # traits, poles, 2 instructions x 3 questions
    assert {row["kind"] for row in rows} == {"trait"}
    of_calm = yaml.safe_load((ROOT / "resources" / "traits" / "calm.yaml").read_text())
    pair = of_calm["instructions"][1]
    prompts = {row["rollout_id"]: row["system_prompt"] for row in rows}
    assert prompts["calm+/1/0"] == pair["positive"]
    assert prompts["calm-/1/0"] == pair["negative"]
    content = load_trait_vectors(results / "trait_vectors.pt")
    assert content["traits"] == include
    activations = [load_activations(results / "activations" / f"{shard}.pt") for shard in shards]
    means = [
        torch.stack(
            [
                values
                for part in activations
                for name, values in zip(
                    part["rollout_id"], part["activations"].double(), strict=True
                )
                if name.startswith(f"witty{sign}/")
            ]
        ).mean(0)
        for sign in "+-"
    ]
    vector = content["vectors"][2]
    assert torch.allclose(vector, (means[0] - means[1]).float(), atol=1e-5)
    table, metadata = read_table(results / "traits.parquet")
    ranked = table.to_pandas().set_index("trait")
    assert ranked["cosine"].is_monotonic_decreasing
    axis = load_axis(results / "axis.pt")
    assert metadata["target_layer"] == 2
    cosine = torch.cosine_similarity(vector[2], axis[2], dim=0)
    assert ranked["cosine"]["witty"] == pytest.approx(float(cosine), abs=1e-5)
    assert ranked["layer_2"]["witty"] == ranked["cosine"]["witty"]
    for name in include:
        assert f">{name}<" in (results / "figures" / "traits_on_axis.svg").read_text()
        assert name in (results / "figures" / "traits_on_axis.html").read_text()
    assert describe(results / "trait_vectors.pt").facts["traits"] == include
    assert describe(results / "traits.parquet").kind == "table of traits along the axis"
    assert planned(project) == {}


def test_shard_layout_changes_no_response(finished, tmp_path):
    folder = make_project(tmp_path / "other")
    edit_config(None, "shards", 5)(folder)
    snakemake(folder, *(f"{RESULTS}/responses/00{shard}.parquet" for shard in range(5)))
    tables = []
    for project_folder in (finished, folder):
        paths = sorted((project_folder / RESULTS / "responses").glob("*.parquet"))
        rows = [row for path in paths for row in read_table(path)[0].to_pylist()]
        tables.append({row["rollout_id"]: row["response"] for row in rows})
    assert tables[0] == tables[1]


def test_dry_run_imports_no_torch(finished):
    code = (
        "import sys; from snakemake.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('loaded', 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "-n",
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--directory",
            str(finished),
            "--configfile",
            str(finished / "config.yaml"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "loaded False False" in run.stdout
    assert "Nothing to be done" in run.stdout + run.stderr
