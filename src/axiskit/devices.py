"""GPUs of a job: leased by file locks, so that no two jobs on a host use one at once.

There is one lock file for each physical GPU, in a folder that all users and runs of a host share.
The kernel frees a lock when its process ends in whatever way, kill -9 included.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from pathlib import Path

from filelock import FileLock, Timeout

from axiskit.errors import DeviceError

# Not tempfile.gettempdir(): TMPDIR often differs by user or by run, and jobs that do not look into
# the same folder do not see each other.
LOCK_FOLDER = "/tmp/axiskit-gpus"
LOCK_FOLDER_VARIABLE = "AXISKIT_GPU_LOCKS"

_GPU = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")
_POLL_S = 1.0
_NVIDIA_SMI_S = 60.0
_log = logging.getLogger(__name__)
_leased: list[FileLock] = []  # a lock is freed with its object: these are kept to the end


def lease_gpus(count: int) -> list[str]:
    """Take GPUs for the rest of this process, and let it see no others.

    Waits until so many are free, and says once in the log who holds them. It takes all at once or
    none, so jobs that need several do not block each other. Call it before torch or vLLM starts
    CUDA.

    Args:
        count: GPUs; with 0 the process sees none, even where there are some: it uses the CPU.

    Returns:
        The GPUs, as ``CUDA_VISIBLE_DEVICES`` now lists them.

    Raises:
        DeviceError: Fewer GPUs are visible, or the lock files cannot be written.
    """
    gpus = visible_gpus() if count else {}
    if len(gpus) < count:
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}: "
            f"{len(gpus)} GPUs visible, {count} needed (resources.gpus); make more visible, or "
            "lower it; 0 runs the model on the CPU"
        )
    leased = _wait_for(count, gpus) if count else []
    if not count and _has_gpus():
        _log.warning("there are GPUs, but resources.gpus is 0: this job runs on the CPU")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leased)
    # the order in which nvidia-smi counts: CUDA's own is another where GPUs differ
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    _log.info("leased GPU %s", ", ".join(leased) if leased else "none: on the CPU")
    return leased


def visible_gpus() -> dict[str, str]:
    """The GPUs that this process may use: those in ``CUDA_VISIBLE_DEVICES``; all if it is not set.

    Returns:
        Name of the physical GPU by entry of the list (index or UUID). The name is its UUID where
        nvidia-smi tells it, so that an index and a UUID for the same GPU come to the same.

    Raises:
        DeviceError: nvidia-smi does not answer.
    """
    uuids = _installed_gpus()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus: dict[str, str] = {}
    for entry in uuids if listed is None else map(str.strip, listed.split(",")):
        if not _GPU.fullmatch(entry):
            break  # CUDA, too, ends the list at what is no GPU: '', -1, NoDevFiles
        gpu = _physical_gpu(entry, uuids)
        if gpu not in gpus.values():
            gpus[entry] = gpu
    return gpus


def _has_gpus() -> bool:
    """Whether there is anything to warn about; nvidia-smi, which takes a second, is not asked."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return Path("/dev/nvidia0").exists() if listed is None else bool(_GPU.match(listed.strip()))


def _installed_gpus() -> dict[str, str]:
    """UUID by index, as nvidia-smi counts; empty where there is no nvidia-smi, or no driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        # not taken for none: this job's locks would have other names than those of all others
        raise DeviceError(
            f"nvidia-smi: no answer within {_NVIDIA_SMI_S:.0f} s, needed to tell GPUs apart; "
            "see why it hangs, and run the same command again"
        ) from error
    except OSError:
        return {}
    return dict(re.findall(r"^(\d+), (GPU-\S+)$", run.stdout, re.MULTILINE))


def _physical_gpu(entry: str, uuids: dict[str, str]) -> str:
    if entry in uuids:
        return uuids[entry]
    found = [uuid for uuid in uuids.values() if uuid.startswith(entry)]  # CUDA takes short ones
    if len(found) == 1:
        return found[0]
    # In a Slurm job an index counts that job's GPUs: 0 is another GPU in each.
    job = os.environ.get("SLURM_JOB_ID")
    return f"slurm-{job}-{entry}" if job and entry.isdigit() else entry


def _wait_for(count: int, gpus: dict[str, str]) -> list[str]:
    folder = Path(os.environ.get(LOCK_FOLDER_VARIABLE) or LOCK_FOLDER)
    paths = {gpu: folder / f"{name.replace('/', '_')}.lock" for gpu, name in gpus.items()}
    waiting = False
    try:
        _make_folder(folder)
        guard = FileLock(folder / "guard", mode=0o666, fallback_to_soft=False)
        while True:
            with guard:  # one job at a time: two that try side by side could both fall short
                locks, held = _take(count, paths)
            if locks:
                _leased.extend(locks.values())
                return list(locks)
            if not waiting:
                waiting = True
                _log.warning(
                    "waiting for %d of %d GPUs (resources.gpus): %s",
                    *(count, len(paths), "; ".join(held)),
                )
            time.sleep(_POLL_S)
    except OSError as error:
        raise DeviceError(
            f"{error.filename or folder}: {error.strerror}; a folder of lock files needed in which "
            f"every user can write ({LOCK_FOLDER_VARIABLE}); mend this one or name another"
        ) from error


def _make_folder(folder: Path) -> None:
    umask = os.umask(0)
    try:  # like /tmp: every user may add files, and remove only their own
        folder.mkdir(mode=0o1777, exist_ok=True)
    finally:
        os.umask(umask)


def _take(count: int, paths: dict[str, Path]) -> tuple[dict[str, FileLock], list[str]]:
    """Locks of so many GPUs, or of none; and who holds those that are not free."""
    locks: dict[str, FileLock] = {}
    held = []
    for gpu, path in paths.items():
        # A lock is its process's own. A forked child closes it (filelock), any other never has it:
        # an orphaned worker that hangs keeps no GPU from all others for good. If it still fills the
        # GPU's memory, the next job there fails, and is tried again (--retries).
        lock = FileLock(path, mode=0o666, fallback_to_soft=False, on_acquired=_sign)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            held.append(f"{gpu} is held by {path.read_text().strip()}")
            continue
        locks[gpu] = lock
        if len(locks) == count:
            return locks, held
    for lock in locks.values():
        lock.release()
    return {}, held


def _sign(file: int) -> None:
    """Write into a lock file who holds it."""
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
