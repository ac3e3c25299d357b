"""The shipped profile on a real Slurm: killed in each way, it ends with a local run's axis."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from workflow.test_workflow import RESULTS, journal_keys, make_project, plant_fuse, snakemake

from axiskit.axis import load_axis

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        "AXISKIT_TEST_SLURM" not in os.environ, reason="make test-slurm brings up the Slurm for it"
    ),
]

AXIS = str(RESULTS / "axis.pt")
PATIENCE_S = 600
BURN = """
try:
    with open_file({marker!r}, "x") as file:
        file.write(os.environ["SLURM_JOB_ID"] + " " + os.environ["CUDA_VISIBLE_DEVICES"])
    seconds = 3600
except FileExistsError:
    seconds = 0
memory = b"x" * {size}
time.sleep(seconds)
"""
"""A job takes so many bytes; the first that comes here leaves its number and GPU, and waits."""


def command(folder, *arguments):
    """Snakemake with the shipped profile, looking at its jobs often, one core each as here."""
    rules = ("generate_responses", "judge_responses", "extract_activations")
    return [
        *(sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(ROOT / "Snakefile")),
        *("--directory", str(folder), "--configfile", str(folder / "config.yaml")),
        *("--workflow-profile", str(ROOT / "config" / "profiles" / "slurm")),
        *("--slurm-init-seconds-before-status-checks", "5"),
        *("--set-threads", *(f"{rule}=1" for rule in rules)),
    ]


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def slurm_jobs():
    """What Slurm says about every job, in the order of submission."""
    lines = slurm("scontrol", "--oneliner", "show", "jobs").splitlines()
    return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]


def wait_until(condition, process, log):
    """Wait for something that a Snakemake in the background leads to."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text() + slurm("squeue", "--long")
        time.sleep(0.5)
    return value


def test_memory_scancel_and_kill_9_lose_nothing_and_change_nothing(tmp_path):
    changes = {
        "resources": {"gpus": 1, "mem_mb": 1000},
        "generation": {"batch_size": 1},
        "activations": {"tokens_per_batch": 1},
    }
    on_cpu = changes | {"resources": {"gpus": 0}}  # the GPUs are only Slurm's
    local = make_project(tmp_path / "local", **on_cpu)
    remote = make_project(tmp_path / "remote", **changes)
    markers = {name: remote / name for name in ("starved", "cancelled", "extracting")}
    sizes = {"starved": 1_200_000_000, "cancelled": 0, "extracting": 0}
    burn = {n: BURN.format(marker=str(markers[n]), size=size) for n, size in sizes.items()}
    fuse = plant_fuse(
        remote,
        3,
        {
            "generate_responses/000.": burn["starved"],
            "generate_responses/001.": burn["cancelled"],
            "extract_activations/": burn["extracting"],
        },
    )

    elsewhere = ThreadPoolExecutor()
    expected = elsewhere.submit(snakemake, local, AXIS)  # while the other waits for Slurm

    def reached(name):
        """Number and GPU of the job that waits."""
        return lambda: markers[name].exists() and markers[name].read_text().split()

    log = tmp_path / "first.log"
    with open(log, "w") as file:
        first = subprocess.Popen(
            command(remote, AXIS),
            env=os.environ | fuse,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    cancelled, gpu = wait_until(reached("cancelled"), first, log)
    assert gpu in {"0", "1"}
    slurm("scancel", cancelled)
    orphan, _ = wait_until(reached("extracting"), first, log)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL

    # as docs/slurm.md says: what is left of the jobs, the lock, the same command; here as a job
    assert orphan in slurm("squeue", "--noheader", "--format=%i").split()
    slurm("scancel", "--user=root")
    while slurm("squeue", "--noheader"):
        time.sleep(0.5)
    subprocess.run(command(remote, "--unlock"), check=True, capture_output=True)
    log = tmp_path / "second.log"
    again = shlex.join(command(remote, AXIS))
    job = ["sbatch", "--wait", "--mem=1000", "--output", str(log), "--wrap", again]
    second = subprocess.Popen(job, env=os.environ | fuse)
    wait_until((remote / AXIS).exists, second, log)
    assert second.wait(PATIENCE_S) == 0, log.read_text()

    jobs = slurm_jobs()
    attempts = defaultdict(list)
    for job in jobs:
        name = job.get("Comment", "").removeprefix("rule_").replace("_wildcards_tiny", "")
        attempts[name].append((job["JobState"], job["MinMemoryNode"]))
        runs_model = name.endswith(("_000", "_001"))
        assert job["Partition"] == ("gpu" if runs_model else "cpu")
        assert job.get("TresPerJob") == ("gres:gpu:1" if runs_model else None)
    grown = ("COMPLETED", "2000M")
    assert attempts["generate_responses_000"] == [("FAILED", "1000M"), grown]
    (said,) = remote.glob(".snakemake/slurm_logs/rule_generate_responses/tiny_000/*.log")
    assert "exceeded memory limit" in said.read_text()
    assert attempts["generate_responses_001"] == [("CANCELLED", "1000M"), grown]
    assert len(attempts["vectors_compute_axis_compute_role_vectors"]) == 1
    for stage, rows in (("generate_responses", 36), ("judge_responses", 30)):
        keys = journal_keys(remote, stage)
        assert len(keys) == len(set(keys)) == rows
    expected.result()
    assert torch.equal(load_axis(remote / AXIS), load_axis(local / AXIS))
