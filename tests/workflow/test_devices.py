"""The eight-GPU test: shards side by side on pretended GPUs, one killed in the middle."""

import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from workflow.test_workflow import RESULTS, edit_config, journal_keys, make_project, snakemake

from axiskit.artifacts import read_table
from axiskit.roles import find_role_files
from axiskit.rollouts import shard_of

pytestmark = pytest.mark.workflow

GPUS = ",".join("01234567")
PROFILE = ROOT / "config" / "profiles" / "workstation"
FUSE = f"""
import builtins, os, signal, time
from pathlib import Path

open_file = builtins.open
seen = Path("seen")


class Fused:
    def __init__(self, file, shard):
        self.file, self.shard, self.flushed = file, shard, 0

    def __getattr__(self, name):
        return getattr(self.file, name)

    def flush(self):
        self.file.flush()
        self.flushed += 1
        if self.flushed == 1:
            mine = seen / f"{{self.shard}}.{{os.getpid()}}"
            mine.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            end = time.monotonic() + 120
            while len(list(seen.iterdir())) < 8 and time.monotonic() < end:
                time.sleep(0.05)
            if self.shard == "003" and not Path("killed").exists():
                Path("killed").write_text(str(os.getpid()))
                os.kill(os.getpid(), {signal.SIGKILL:d})


def open(path, mode="r", *args, **kwargs):
    file = open_file(path, mode, *args, **kwargs)
    in_journal = mode == "a" and "journal/generate_responses/" in str(path)
    return Fused(file, Path(path).name[:3]) if in_journal else file


builtins.open = open
"""
"""What Python runs first in every process of the workflow.

After its first row a job notes what GPUs it sees, and waits until eight have done so: so eight run
at the same time. Then the first job of shard 003 is killed.
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of eight shards, a role in each."""
    folder = make_project(
        tmp_path_factory.mktemp("gpus"),
        resources={"gpus": 1},
        questions={"count": 1},
        generation={"max_new_tokens": 4, "batch_size": 1},
        conversations={"include": [], "extra_transcripts": []},
    )
    roles = ROOT / "resources" / "roles"
    one_a_shard = {shard_of(name, 8): name for name in find_role_files(roles, "all")}
    assert len(one_a_shard) == 8
    edit_config(None, "shards", 8)(folder)
    edit_config("roles", "dir", str(roles))(folder)
    edit_config("roles", "include", sorted(one_a_shard.values()))(folder)
    return folder


def test_eight_shards_on_eight_gpus_with_kill_9_in_the_middle(project):
    (project / "seen").mkdir()
    (project / "fuse").mkdir()
    (project / "fuse" / "sitecustomize.py").write_text(FUSE)
    targets = [f"{RESULTS}/responses/00{shard}.parquet" for shard in range(8)]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *("--directory", str(project), "--configfile", str(project / "config.yaml")),
            *("--workflow-profile", str(PROFILE), "--cores", "8"),
            *targets,
        ],
        env=os.environ
        | {
            "PYTHONPATH": str(project / "fuse"),
            "CUDA_VISIBLE_DEVICES": GPUS,
            "AXISKIT_GPU_LOCKS": str(project / "locks"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"Provided resources: gpu=.*\b8\b", run.stderr)  # the profile's
    killed = f"003.{(project / 'killed').read_text()}"
    seen = {path.name: path.read_text() for path in (project / "seen").iterdir()}
    (again,) = (job for job in seen if job.startswith("003.") and job != killed)
    assert sorted(gpu for job, gpu in seen.items() if job != again) == list("01234567")
    logs = project / RESULTS / "logs" / "generate_responses"
    for job, gpu in seen.items():
        assert job == killed or f"leased GPU {gpu}\n" in (logs / f"{job[:3]}.log").read_text()
    assert "2 rollouts, 1 done before" in (logs / "003.log").read_text()
    rows = [row for target in targets for row in read_table(project / target)[0].to_pylist()]
    keys = journal_keys(project, "generate_responses")
    assert len(keys) == len(set(keys)) == len(rows)


def test_fewer_gpus_for_all_than_one_job_needs_are_an_error_before_any_job(project):
    run = snakemake(project, f"{RESULTS}/axis.pt", "--resources", "gpu=0", check=False)
    assert run.returncode != 0
    assert "--resources gpu=0: 1 needed by each job that runs the model (resources.gpus)" in (
        run.stderr
    )
    assert "Traceback" not in run.stderr
