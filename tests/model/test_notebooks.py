"""The notebooks run in a Jupyter kernel on a tiny finished run; both files say the same."""

import json
import os

import jupytext
import nbclient
import nbformat
import pytest
import torch
from conftest import ROOT
from jupyter_client import KernelManager

from axiskit.activations import extract_activations
from axiskit.axis import write_axis
from axiskit.capping import calibrate_capping
from axiskit.conversations import hold_conversation
from axiskit.generation import generate_responses
from axiskit.judging import judge_responses
from axiskit.projections import project_responses
from axiskit.vectors import compute_role_vectors, load_role_vectors

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
ROLES = ["ghost", "lawyer", "pirate", "poet", "tree"]


@pytest.fixture(scope="module")
def tiny_run(tiny_model, tmp_path_factory):
    """results/{model} of a tiny model: what the notebooks read."""
    folder = tmp_path_factory.mktemp("results") / "tiny"
    role_paths = [ROOT / "resources" / "roles" / f"{name}.yaml" for name in [*ROLES, "default"]]
    model = {
        "model_path": tiny_model,
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
    }
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 0, "batch_size": 64}
    responses_path = folder / "responses" / "000.parquet"
    scores_path = folder / "scores" / "000.parquet"
    activations_path = folder / "activations" / "000.pt"
    generate_responses(
        role_paths=role_paths,
        questions_path=ROOT / "resources" / "questions.jsonl",
        responses_path=responses_path,
        journal_folder=folder / "journal" / "generate_responses",
        shard="000",
        name="tiny",
        display_name="tiny",
        n_questions=2,
        prompts_per_role=2,
        default_prompts=2,
        engine="transformers",
        max_new_tokens=8,
        n_gpus=0,
        vllm={},
        layers="all",
        target_layer_setting="auto",
        **sampling,
        **model,
    )
    judge_responses(
        responses_path=responses_path,
        default_role_path=role_paths[-1],
        scores_path=scores_path,
        journal_folder=folder / "journal" / "judge_responses",
        shard="000",
        display_name="tiny",
        backend="likelihood",
        thresholds=[-1000.0, -999.0],
        max_unscored=1.0,
        tokens_per_batch=4096,
        **model,
    )
    extract_activations(
        responses_path=responses_path,
        activations_path=activations_path,
        checkpoint_folder=folder / "journal" / "extract_activations",
        shard="000",
        layers="all",
        tokens_per_batch=4096,
        **model,
    )
    compute_role_vectors(
        role_paths=role_paths,
        responses_paths=[responses_path],
        scores_paths=[scores_path],
        activations_paths=[activations_path],
        role_vectors_path=folder / "role_vectors.pt",
        roles_path=folder / "roles.parquet",
        min_score=3,
        min_responses=1,
        min_roles=3,
    )
    write_axis(role_vectors_path=folder / "role_vectors.pt", axis_path=folder / "axis.pt")
    project_responses(
        responses_paths=[responses_path],
        activations_paths=[activations_path],
        axis_path=folder / "axis.pt",
        projections_path=folder / "projections.parquet",
    )
    calibrate_capping(
        projections_path=folder / "projections.parquet",
        axis_path=folder / "axis.pt",
        capping_config_path=folder / "capping_config.pt",
        capping_path=folder / "capping.parquet",
        widths=[2],
        step=1,
        floor_quantiles=[0.75],
    )
    script = folder / "greeting.yaml"
    script.write_text("name: greeting\ndomain: test\ndescription: two turns\nturns: [Hello, Bye]\n")
    hold_conversation(
        script_paths=[script],
        axis_path=None,
        capping_config_path=None,
        conversation_paths=[folder / "conversations" / "greeting.unsteered.json"],
        journal_folder=folder / "journal" / "hold_conversation",
        condition="unsteered",
        experiment="",
        away_coefficient=0.0,
        target_layer_setting="auto",
        name="tiny",
        max_turns=None,
        max_new_tokens=8,
        **sampling,
        **model,
    )
    return folder


@pytest.fixture(scope="module")
def published(tiny_run, tmp_path_factory):
    """The same vectors as in the published data set: bare tensors, a file a role."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    (folder / "role_vectors").mkdir(parents=True)
    content = load_role_vectors(tiny_run / "role_vectors.pt")
    for name, vector in zip(content["roles"], content["vectors"], strict=True):
        torch.save(vector.clone().bfloat16(), folder / "role_vectors" / f"{name}.pt")
    axis = content["default"] - content["vectors"].mean(dim=0)
    torch.save(axis, folder / "assistant_axis.pt")
    return folder


@pytest.fixture(scope="module")
def kernel():
    """One Jupyter kernel for all, since importing torch takes longer than a tiny notebook."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths).rstrip(os.pathsep),
        "OMP_NUM_THREADS": "1",  # as fast for tiny tensors, and fair to what runs beside
    }
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT / "notebooks"), env=environment)
    yield manager
    manager.shutdown_kernel(now=True)


def executed(source, results, kernel):
    """The notebook after a run, in an empty namespace; a cell that fails raises."""
    start = f"%reset -f\nimport os\nos.environ['AXISKIT_RESULTS'] = {str(results)!r}\ndel os"
    notebook = jupytext.read(source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(start))
    return nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()


def outputs(notebook):
    """What each kind of output says, all cells together."""
    said = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind, value in output.get("data", {"text/plain": output.get("text", "")}).items():
                said[kind] = said.get(kind, "") + value
    return said


@pytest.mark.parametrize(
    ("number", "figures", "says"),
    [(1, 2, "ghost"), (2, 3, "axis [4, 32]"), (3, 1, "firing rate"), (4, 1, "greeting")],
)
def test_notebook_runs(number, figures, says, tiny_run, kernel):
    [source] = [path for path in SOURCES if path.name.startswith(f"{number}_")]
    notebook = executed(source, tiny_run, kernel)
    images = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == figures
    assert any(says in text for text in outputs(notebook).values())


@pytest.mark.parametrize("source", SOURCES[:2], ids=lambda path: path.stem)
def test_notebook_runs_on_published_vectors(source, published, kernel):
    assert "image/png" in outputs(executed(source, published, kernel))


def test_there_are_four():
    assert [path.stem[0] for path in SOURCES] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_both_files_of_a_notebook_say_the_same(source):
    def cells(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    path = source.with_suffix(".ipynb")
    name = source.relative_to(ROOT)
    repair = f"not in step; run: jupytext --update --to ipynb {name}"
    assert path.exists(), repair
    paired = nbformat.read(path, as_version=4)
    assert cells(paired) == cells(jupytext.read(source)), repair
    repair = f"outputs found; run: jupytext --to ipynb {name}"
    assert not any(cell.get("outputs") for cell in paired.cells), repair
    assert json.loads(path.read_text())["metadata"]["jupytext"]["formats"] == "ipynb,py:percent"
