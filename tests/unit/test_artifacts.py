import os
import pickle
import subprocess
import sys

import pyarrow as pa
import pytest
import torch

from axiskit.artifacts import (
    check_same_model,
    load_activations,
    read_pt,
    read_table,
    stage_metadata,
    write_pt,
    write_table,
)
from axiskit.axis import load_axis, save_axis
from axiskit.errors import ArtifactError, WriteError

MODEL = {"name": "m", "fingerprint": "f", "hidden_size": 3, "n_layers": 2}


def metadata(**settings):
    return stage_metadata("generate_responses", [{"stages": {}, "model": MODEL}], **settings)


def test_table_comes_back_with_its_metadata(tmp_path):
    table = pa.table({"a": [1, 2]})
    write_table(tmp_path / "t.parquet", table, metadata(seed=1))
    read, found = read_table(tmp_path / "t.parquet")
    assert read.to_pydict() == {"a": [1, 2]}
    assert found["stages"]["generate_responses"] == {"recipe": 1, "seed": 1}
    assert found["versions"]["axiskit"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("size", [0, 100])
def test_truncated_files_are_one_clear_error(tmp_path, size):
    write_table(tmp_path / "t.parquet", pa.table({"a": list(range(1000))}), metadata())
    write_pt(tmp_path / "t.pt", {"axis": torch.ones(20, 30)})
    for name, read in (("t.parquet", read_table), ("t.pt", read_pt)):
        with open(tmp_path / name, "rb+") as file:
            file.truncate(size)
        with pytest.raises(ArtifactError, match=rf"{name}: cannot be read .*; delete it"):
            read(tmp_path / name)


def test_missing_foreign_and_incomplete_files(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.pt: cannot be read"):
        read_pt(tmp_path / "none.pt")
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(ArtifactError, match="no axiskit metadata"):
        read_table(tmp_path / "foreign.parquet")
    write_pt(tmp_path / "a.pt", {"axis": torch.ones(1)})
    with pytest.raises(ArtifactError, match="vectors missing"):
        read_pt(tmp_path / "a.pt", ["axis", "vectors"])


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"axis": _Bomb()}, "bomb.pt")
    with pytest.raises(ArtifactError, match="could run code"):
        load_axis("bomb.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ArtifactError):
        load_axis("plain.pkl")
    assert not (tmp_path / "exploded").exists()


def test_axis_round_trip_and_bare_tensor(tmp_path):
    axis = torch.randn(2, 3)
    save_axis(tmp_path / "axis.pt", axis, {"model": MODEL})
    torch.save(axis, tmp_path / "bare.pt")
    assert torch.equal(load_axis(tmp_path / "axis.pt"), axis)
    assert torch.equal(load_axis(tmp_path / "bare.pt"), axis)
    torch.save(axis[0], tmp_path / "flat.pt")
    with pytest.raises(ArtifactError, match=r"shape \[3\], an axis \[layer, hidden\] needed"):
        load_axis(tmp_path / "flat.pt")


def test_wrong_shape_and_wrong_model_say_both_numbers(tmp_path):
    content = {
        "rollout_id": ["a/0/0"],
        "activations": torch.ones(1, 2, 4, dtype=torch.bfloat16),
        "layers": [0, 1],
        "n_tokens": [1],
        "metadata": metadata(),
    }
    write_pt(tmp_path / "a.pt", content)
    with pytest.raises(ArtifactError, match=r"\[2, 4\], \[2, 3\] needed for m"):
        load_activations(tmp_path / "a.pt")
    other = {"model": MODEL | {"hidden_size": 5}}
    with pytest.raises(ArtifactError, match="hidden_size is 3 in one and 5 in the other"):
        check_same_model({"model": MODEL}, other)
    with pytest.raises(ArtifactError, match="one input was made by generate_responses with"):
        stage_metadata("compute_axis", [metadata(seed=1), metadata(seed=2)])


WRITE_TOO_MUCH = """
import resource, signal, sys
import pyarrow as pa, torch
from axiskit.artifacts import write_pt, write_table
from axiskit.errors import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (
    lambda: write_pt("big.pt", {"x": torch.rand(100_000)}),
    lambda: write_table("big.parquet", pa.table({"x": torch.rand(100_000).numpy()}), {}),
):
    try:
        write()
    except WriteError as error:
        print(error)
"""


def test_no_room_for_a_file_leaves_nothing_half_written(tmp_path):
    """A real write error: the system refuses to let the file grow past 50 kB."""
    (tmp_path / "big.pt").write_text("from an earlier run")
    run = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["big.pt", "big.parquet"]
    assert all("cannot be written" in line and "make room" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["big.pt"]
    assert (tmp_path / "big.pt").read_text() == "from an earlier run"


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        write_pt(tmp_path / "file" / "x.pt", {})
