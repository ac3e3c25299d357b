"""Leases of GPUs between real processes; the GPUs are pretended, the locks are not."""

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from axiskit.devices import lease_gpus, visible_gpus
from axiskit.errors import DeviceError

EIGHT = ",".join("01234567")
JOB = """
import logging, os, signal, sys
from pathlib import Path
from axiskit.devices import lease_gpus

signal.alarm(120)  # what would wait for ever fails
logging.basicConfig(stream=sys.stdout, format="%(message)s")
gpus = lease_gpus(int(sys.argv[1]))
marks = [Path(sys.argv[2], f"{gpu}.used") for gpu in gpus]
for mark in marks:
    mark.touch(exist_ok=False)  # two on one GPU would end here
assert ",".join(gpus) == os.environ["CUDA_VISIBLE_DEVICES"]
print("leased", *gpus, flush=True)
sys.stdin.read()
for mark in marks:
    mark.unlink()
"""
"""Says on its first line that it waits or what it leased; holds it until its stdin is closed."""


@pytest.fixture
def start(tmp_path):
    """Starts jobs; kills those that are left."""
    jobs = []

    def start(count, visible=EIGHT, code=JOB, folder=tmp_path, **variables):
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "AXISKIT_GPU_LOCKS": str(folder / "locks"),
            "CUDA_VISIBLE_DEVICES": visible,
        }
        job = subprocess.Popen(
            [sys.executable, "-c", code, str(count), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | variables,
            umask=0o077,
        )
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.kill()
        job.wait()
        job.stdin.close()
        job.stdout.close()


def leased(job):
    """The GPUs that a job says it has leased; an empty list: that it waits."""
    line = job.stdout.readline()
    what, *gpus = line.split()
    assert what in {"leased", "waiting"}, line
    return gpus if what == "leased" else []


def end(job):
    job.stdin.close()
    assert job.wait() == 0


def test_twelve_jobs_on_eight_gpus_never_two_on_one(start):
    jobs = [start(1) for _ in range(12)]
    first = {job: leased(job) for job in jobs}
    holders = [job for job in jobs if first[job]]
    assert sorted(gpu for job in holders for gpu in first[job]) == list("01234567")  # all at once
    waiters = [job for job in jobs if not first[job]]
    freed = []
    for holder, waiter in zip(holders[:4], waiters, strict=True):
        freed += first[holder]
        end(holder)
        assert waiter.poll() is None
    assert sorted(gpu for job in waiters for gpu in leased(job)) == sorted(freed)
    for job in holders[4:] + waiters:
        end(job)


def test_jobs_that_need_two_of_three_do_not_block_each_other(start):
    waiting = [start(2, visible="0,1,2") for _ in range(5)]
    running = [job for job in waiting if leased(job)]
    assert len(running) == 1
    small = start(1, visible="0,1,2")  # for which the GPU that is left is enough
    assert len(leased(small)) == 1
    end(small)
    while running:
        waiting.remove(running[0])
        end(running[0])
        running = next_to_lease(waiting)
        assert len(running) <= 1


def next_to_lease(jobs):
    """The jobs that say something next, each of which has leased two GPUs."""
    with selectors.DefaultSelector() as selector:
        for job in jobs:
            selector.register(job.stdout, selectors.EVENT_READ, job)
        found = [key.data for key, _ in selector.select()] if jobs else []
    assert all(len(leased(job)) == 2 for job in found)
    return found


def test_kill_9_frees_the_gpus_for_who_waits_and_the_log_says_who_held_them(start):
    holder = start(2, visible="0,1")
    assert leased(holder) == ["0", "1"]
    waiter = start(1, visible="0,1")
    line = waiter.stdout.readline()
    assert line.startswith("waiting for 1 of 2 GPUs (resources.gpus): 0 is held by process ")
    assert line.count(f"is held by process {holder.pid} since 2") == 2
    holder.send_signal(signal.SIGKILL)
    (Path(waiter.args[-1]) / "0.used").unlink()
    assert leased(waiter) == ["0"]  # and it has not said twice that it waits
    end(waiter)


WITH_CHILD = """
import multiprocessing, subprocess, sys, time
from axiskit.devices import lease_gpus

lease_gpus(1)
if sys.argv[1] == "fork":
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
else:
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
print("leased", child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("way", ["fork", "exec"])
def test_an_orphaned_child_keeps_no_gpu(start, way):
    holder = start(way, visible="0", code=WITH_CHILD)
    child = int(*leased(holder))
    try:
        waiter = start(1, visible="0")
        assert leased(waiter) == []
        holder.send_signal(signal.SIGKILL)
        assert leased(waiter) == ["0"]
        os.kill(child, 0)  # it lives
        end(waiter)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.fixture
def pretend_nvidia_smi(tmp_path, monkeypatch):
    """A command that lists two GPUs, and nothing else on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho '0, GPU-aa11'\necho '1, GPU-ab22'\n")
    command.chmod(0o755)


def test_an_index_and_a_uuid_are_the_same_gpu(start, pretend_nvidia_smi):
    by_index, by_uuid, by_short_uuid = start(1, "1"), start(1, "GPU-ab22"), start(1, "GPU-ab")
    jobs = [by_index, by_uuid, by_short_uuid]
    first = {job: leased(job) for job in jobs}
    assert sum(bool(gpus) for gpus in first.values()) == 1
    assert leased(start(1, "0")) == ["0"]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, {"0": "GPU-aa11", "1": "GPU-ab22"}),
        ("1,0", {"1": "GPU-ab22", "0": "GPU-aa11"}),
        ("GPU-ab22, 0", {"GPU-ab22": "GPU-ab22", "0": "GPU-aa11"}),
        ("0,GPU-aa,1", {"0": "GPU-aa11", "1": "GPU-ab22"}),  # one GPU, named twice
        ("GPU-a", {"GPU-a": "GPU-a"}),  # could be either: left to CUDA
        ("MIG-cc33", {"MIG-cc33": "MIG-cc33"}),
        ("1,-1,0", {"1": "GPU-ab22"}),
        ("", {}),
        ("NoDevFiles", {}),
        ("../x", {}),
    ],
)
def test_visible_gpus(listed, expected, pretend_nvidia_smi, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    found = visible_gpus()
    assert found == expected
    assert list(found) == list(expected)


def test_the_same_index_in_two_slurm_jobs_is_not_the_same_gpu(start, tmp_path):
    one, other, again = (
        start(1, "0", JOB.replace(".used", f".used{job}{i}"), SLURM_JOB_ID=job, PATH=str(tmp_path))
        for i, job in enumerate(("7", "8", "7"))
    )
    assert leased(other) == ["0"]
    # two within one allocation: one waits
    assert sorted([leased(one), leased(again)]) == [[], ["0"]]


@pytest.mark.parametrize("listed", ["0", "", "-1"])
def test_too_few_gpus_are_an_error_at_once(listed, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with pytest.raises(DeviceError) as error:
        lease_gpus(2)
    assert str(error.value) == (
        f"CUDA_VISIBLE_DEVICES={listed}: {int(listed == '0')} GPUs visible, 2 needed "
        "(resources.gpus); make more visible, or lower it; 0 runs the model on the CPU"
    )


def test_a_job_without_gpus_sees_none_and_says_so_where_there_are_some(start):
    job = start(0)
    assert job.stdout.readline() == (
        "there are GPUs, but resources.gpus is 0: this job runs on the CPU\n"
    )
    assert leased(job) == []
    end(job)
    job = start(0, visible="")
    assert leased(job) == []
    end(job)


def test_lock_files_that_cannot_be_written_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "file").touch()
    monkeypatch.setenv("AXISKIT_GPU_LOCKS", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=r"AXISKIT_GPU_LOCKS"):
        lease_gpus(1)


AS_ANOTHER_USER = """
import os
import axiskit.devices, filelock
os.setuid(int(os.environ["JOB_USER"]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as other users")
def test_two_users_share_the_locks(start):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        users = {"folder": Path(folder), "visible": "0,1", "code": AS_ANOTHER_USER + JOB}
        one = start(1, JOB_USER="65533", **users)
        assert leased(one) == ["0"]
        other = start(1, JOB_USER="65534", **users)
        assert leased(other) == ["1"]
        waiter = start(2, JOB_USER="65534", **users)
        assert f"0 is held by process {one.pid} " in waiter.stdout.readline()
        end(one)
        end(other)
        assert leased(waiter) == ["0", "1"]
        end(waiter)
        modes = {path.name: path.stat().st_mode & 0o777 for path in Path(folder, "locks").iterdir()}
        assert modes == {"guard": 0o666, "0.lock": 0o666, "1.lock": 0o666}
