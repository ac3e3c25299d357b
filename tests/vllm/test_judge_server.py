"""A local judge for free: vLLM's own /v1/messages, a server that nobody here has written."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from axiskit.asking import HostedJudge, Question, ask
from axiskit.errors import ServerError
from axiskit.journal import Journal
from axiskit.judge_prompts import parse_role_score, role_prompt

# not "vllm" alone: that this folder would be, too
pytest.importorskip("vllm.entrypoints", reason="vLLM is not installed")
pytestmark = pytest.mark.vllm

STARTUP_S = 300
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def server(wide_model, tmp_path_factory):
    """Address of a vLLM that serves a tiny random model, in a process of its own."""
    folder = tmp_path_factory.mktemp("vllm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(wide_model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
    url = f"http://127.0.0.1:{port}"
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | CPU_SETTINGS, start_new_session=True
        )
    try:
        deadline = time.monotonic() + STARTUP_S
        while not _is_up(url):
            said = (folder / "log").read_text()[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_up(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def judge(server, **changes):
    settings = {
        "backend": "anthropic",
        "model": "tiny",
        "base_url": server,
        "extra_body": {
            "thinking": None,
            "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        "max_tokens": 4,
        "patience_s": 20.0,
    }
    return HostedJudge(**settings | changes)


def questions(read, n=6):
    return {
        f"pirate/0/{i}": Question(
            role_prompt(name="pirate", description="Sails.", question="Why?", response="Arr! " * i),
            read,
        )
        for i in range(n)
    }


def test_every_answer_is_read_kept_and_asked_once(server, tmp_path):
    """A random model gives no verdict: what it says is read as the length of its text."""
    asked = questions(len)
    answers = ask(asked, judge(server), journal_folder=tmp_path, owner="a", what="judging")
    assert [answer.reason for answer in answers.values()] == [None] * 6
    assert all(answer.value == len(answer.raw) for answer in answers.values())
    assert all(answer.tokens_in > 100 and answer.tokens_out == 4 for answer in answers.values())
    assert len(list(Journal(tmp_path, "x").rows())) == 6
    again = ask(asked, judge(server), journal_folder=tmp_path, owner="b", what="judging")
    assert again == answers
    assert len(list(Journal(tmp_path, "x").rows())) == 6


def test_what_is_no_verdict_is_unscored_with_its_text(server, tmp_path):
    answers = ask(
        questions(parse_role_score), judge(server), journal_folder=tmp_path, owner="a", what="j"
    )
    assert {answer.value for answer in answers.values()} == {None}
    assert {a.reason for a in answers.values()} == {"unreadable verdict, cut at judge.max_tokens"}
    assert len(list(Journal(tmp_path, "x").rows())) == 12  # each asked once more


def test_a_model_that_is_not_served_stops_the_job(server, tmp_path):
    with pytest.raises(ServerError, match=r"refuses what it is sent: .*correct judge\.model"):
        ask(
            questions(parse_role_score),
            judge(server, model="other"),
            journal_folder=tmp_path,
            owner="a",
            what="judging",
        )
