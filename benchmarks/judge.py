"""How a hosted judge is asked when a tenth of the requests fail, against the stub server.

    .venv/bin/python benchmarks/judge.py

2,000 responses, 10 % faults of all kinds: is each one scored, or unscored with a reason; is any
asked again after its answer; what share of the throughput that latency and window allow is reached.
Then the same with three kill -9 and no faults: are the scores those of a smooth run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stub_anthropic import KEY

from axiskit.asking import HostedJudge, ask
from axiskit.journal import Journal
from axiskit.judge_prompts import parse_role_score, role_prompt

N, WINDOW = 2000, 32
LATENCY_S, SLOW_S = 2.0, 5.0  # long beside what this machine spends on a request
KILL_LATENCY_S = 0.5
ASKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from judge import asked
print(json.dumps({name: answer.value for name, answer in asked(*sys.argv[2:4]).items()}))
"""


@contextmanager
def stub(faults: float, latency_s: float) -> Iterator[str]:
    """The stub server in a process of its own; its address."""
    program = Path(__file__).parents[1] / "tests" / "stub_anthropic.py"
    command = [sys.executable, str(program), str(latency_s), str(faults), str(SLOW_S)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    """What the stub counted."""
    with urllib.request.urlopen(f"{url}/stats") as reply:
        content: dict[str, Any] = json.load(reply)
    return content


def asked(url: str, folder: str) -> dict[str, Any]:
    """Ask for 2,000 scores."""
    from axiskit.asking import Question

    questions = {
        f"role/0/{i}": Question(
            role_prompt(
                name="pirate", description="A pirate.", question="Why?", response="Arr." * i
            ),
            parse_role_score,
        )
        for i in range(N)
    }
    judge = HostedJudge(
        backend="anthropic",
        model="claude-benchmark",
        base_url=url,
        max_in_flight=WINDOW,
        price=(0.1, 0.5),
    )
    return ask(questions, judge, journal_folder=folder, owner="000", what="judging")


def main() -> None:
    """Measure and print."""
    os.environ["ANTHROPIC_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as folder, stub(0.1, LATENCY_S) as url:
        import anthropic  # noqa: F401  (its import is not what is measured)

        start = time.perf_counter()
        answers = asked(url, folder)
        seconds = time.perf_counter() - start
        seen = stats(url)
    reasons = Counter(a.reason for a in answers.values() if a.value is None)
    scored = sum(answer.value is not None for answer in answers.values())
    allowed = seen["service_s"] / WINDOW
    print(f"{N} responses, window {WINDOW}, latency {LATENCY_S} s, faults {seen['faults']}")
    print(f"scored {scored}, unscored {dict(reasons)}, neither {N - scored - reasons.total()}")
    print(f"asked again after an answer: {seen['asked_after_verdict']}")
    print(
        f"{seen['requests']} requests in {seconds:.1f} s; latency and window allow it in ", end=""
    )
    print(f"{allowed:.1f} s: {allowed / seconds:.1%} of the throughput that they allow")

    with tempfile.TemporaryDirectory() as folder, stub(0.0, KILL_LATENCY_S) as url:
        command = [sys.executable, "-c", ASKER, str(Path(__file__).parent), url, folder]
        for goal in (400, 900, 1500):
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            while sum(1 for _ in Journal(folder, "x").rows()) < goal:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        torn = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        seen = stats(url)
    with tempfile.TemporaryDirectory() as folder, stub(0.0, KILL_LATENCY_S) as url:
        smooth = {name: answer.value for name, answer in asked(url, folder).items()}
    lost = f"{seen['asked_after_verdict']} answers were on their way at a kill and asked again"
    print(f"three kill -9: scores identical: {torn == smooth}; {seen['requests']} requests; {lost}")


if __name__ == "__main__":
    main()
