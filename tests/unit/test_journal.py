import json

import pytest

from axiskit.errors import WriteError
from axiskit.journal import Journal
from axiskit.rollouts import digest


def test_rows_of_all_jobs_are_found_and_a_torn_line_is_dropped(tmp_path):
    keys = [digest(i) for i in range(4)]
    with Journal(tmp_path / "j", "000") as first, Journal(tmp_path / "j", "000") as second:
        first.append(keys[0], {"response": "a\nb \u2028 \u00e9"})
        second.append(keys[1], {"response": "c"})
        first.append(keys[2], {"response": "d"})
    assert len(list((tmp_path / "j").iterdir())) == 2
    torn = sorted((tmp_path / "j").iterdir())[0]
    torn.write_bytes(torn.read_bytes() + f'{{"key": "{keys[3]}", "response": "ha'.encode())
    (tmp_path / "j" / "x.jsonl").write_text(f'{{"key": "{keys[3]}", "resp\0\0\0}}\n')
    rows = Journal(tmp_path / "j", "001").read(set(keys))
    assert {key: row["response"] for key, row in rows.items()} == {
        keys[0]: "a\nb \u2028 \u00e9",
        keys[1]: "c",
        keys[2]: "d",
    }
    assert Journal(tmp_path / "j", "001").read({keys[1]}).keys() == {keys[1]}


def test_every_line_is_on_disk_when_append_returns(tmp_path):
    journal = Journal(tmp_path, "000")
    journal.append(digest("x"), {"n": 1})
    assert json.loads(journal.path.read_text()) == {"key": digest("x"), "n": 1}
    journal.close()


def test_full_disk_is_one_clear_error(tmp_path):
    with Journal(tmp_path, "000") as journal:
        journal.path.symlink_to("/dev/full")  # every write to it fails as on a full disk
        with pytest.raises(WriteError, match="No space left on device; make room and run the same"):
            journal.append(digest("x"), {"n": 1})


def test_an_empty_or_missing_journal_has_no_rows(tmp_path):
    assert Journal(tmp_path / "none", "000").read({digest("x")}) == {}
