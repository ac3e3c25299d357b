"""Questions to the stub server, from this process and from another."""

import subprocess
import sys

from axiskit.asking import HostedJudge, Question, ask
from axiskit.judge_prompts import parse_role_score


def judge(stub, **settings):
    return HostedJudge(
        **{"backend": "anthropic", "model": "claude-test", "base_url": stub.url} | settings
    )


def questions(count, start=0):
    return {f"q{i}": Question(f"prompt {i}", parse_role_score) for i in range(start, count)}


def verdict(prompt):
    return str(int(prompt.split()[1]) % 4)


def run(stub, folder, asked, **settings):
    return ask(asked, judge(stub, **settings), journal_folder=folder, owner="000", what="judging")


ASKER = """
import dataclasses, json, logging, sys
logging.basicConfig(level=logging.WARNING)
from axiskit.asking import HostedJudge, Question, ask
from axiskit.errors import AxiskitError
from axiskit.judge_prompts import parse_role_score
url, folder, count, backend, cancel = sys.argv[1:]
judge = HostedJudge(backend=backend, model="claude-test", base_url=url, max_in_flight=8, poll_s=0.1)
judge = dataclasses.replace(judge, cancel_on_interrupt=cancel == "True")
asked = {f"q{i}": Question(f"prompt {i}", parse_role_score) for i in range(int(count))}
try:
    answers = ask(asked, judge, journal_folder=folder, owner="000", what="judging")
except AxiskitError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps({name: answer.value for name, answer in answers.items()}))
"""


def start_asker(stub, folder, count, backend="anthropic", cancel=False):
    command = [sys.executable, "-c", ASKER, stub.url, str(folder), str(count), backend, str(cancel)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
