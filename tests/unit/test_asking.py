"""Asking a hosted judge, over real HTTP."""

import json
import logging
import signal
import subprocess
import sys
import time

import pytest
from asking_helpers import judge, questions, run, start_asker, verdict
from hypothesis import given
from hypothesis import strategies as st
from stub_anthropic import KEY, StubAnthropic, mixed_faults

from axiskit.asking import HostedJudge, Question, ask, turn
from axiskit.errors import AccountError, BudgetError, ServerError
from axiskit.journal import Journal
from axiskit.judge_failures import failure_of_status, retry_after
from axiskit.judge_prompts import parse_role_score
from axiskit.messages import Pace


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    for name in ("ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def once(fault):
    return lambda prompt, n: fault if n == 0 else None


def test_every_question_is_answered_once_and_equal_ones_share_an_answer(tmp_path):
    with StubAnthropic(verdict) as stub:
        asked = questions(20) | {"same": Question("prompt 3", parse_role_score)}
        answers = run(stub, tmp_path, asked)
        assert {name: a.value for name, a in answers.items()} == {
            **{f"q{i}": i % 4 for i in range(20)},
            "same": 3,
        }
        assert answers["q3"].raw == "3"
        assert answers["q3"].tokens_in > 0
        assert set(stub.asked.values()) == {1}
        assert run(stub, tmp_path, asked) == answers  # all from the journal
        assert sum(stub.asked.values()) == 20
        run(stub, tmp_path, questions(22))  # only what is new
        assert sum(stub.asked.values()) == 22
        assert stub.refused_bodies == []


@pytest.mark.parametrize("change", ["model", "extra_body", "repeat"])
def test_another_judge_body_or_repetition_is_asked_anew(tmp_path, change):
    with StubAnthropic() as stub:
        run(stub, tmp_path, questions(2))
        settings = {"model": {"model": "other"}, "extra_body": {"extra_body": {"thinking": 1}}}
        asked = questions(2)
        if change == "repeat":
            asked = {n: Question(q.prompt, q.parse, repeat=1) for n, q in asked.items()}
        run(stub, tmp_path, asked, **settings.get(change, {}))
        assert set(stub.asked.values()) == {2}


@pytest.mark.parametrize(
    "fault", ["429", "529", "500", "503", "slow", "cut", "hang up", "garbage", "wrong json"]
)
def test_what_passes_is_tried_again(tmp_path, fault):
    with StubAnthropic(verdict, once(fault), slow_s=1.5) as stub:
        answers = run(stub, tmp_path, questions(3), timeout_s=0.3)
        assert [answers[f"q{i}"].value for i in range(3)] == [0, 1, 2]
        assert set(stub.asked.values()) == {2}


def test_a_rate_limit_is_waited_for_as_told(tmp_path):
    with StubAnthropic(verdict, once("429"), retry_after="1") as stub:
        run(stub, tmp_path, questions(1))
        assert stub.times[1] - stub.times[0] >= 1.0


def test_an_unreadable_verdict_is_asked_once_more_then_unscored_with_its_text(tmp_path):
    def fault(prompt, n):
        return "unreadable" if prompt == "prompt 1" or n == 0 else None

    with StubAnthropic(verdict, fault) as stub:
        answers = run(stub, tmp_path, questions(2))
        assert answers["q0"].value == 0
        assert answers["q1"].value is None
        assert answers["q1"].reason == "unreadable verdict, cut at judge.max_tokens"
        assert answers["q1"].raw == "I would say that it is about a 3, but"
        assert stub.asked == {"prompt 0": 2, "prompt 1": 2}
        assert answers["q1"].tokens_out == 2 * 9  # both are paid for
        run(stub, tmp_path, questions(2))
        assert sum(stub.asked.values()) == 4  # and neither is asked again


def test_a_refusal_is_unscored_with_its_reason_and_final(tmp_path):
    with StubAnthropic(fault=lambda prompt, n: "refusal") as stub:
        for _ in range(2):
            answer = run(stub, tmp_path, questions(1))["q0"]
            assert (answer.value, answer.reason) == (None, "the judge refused (bio)")
        assert sum(stub.asked.values()) == 1


@pytest.mark.parametrize("fault", ["401", "403", "402", "credit", "spend"])
def test_account_trouble_stops_at_once_and_keeps_what_was_paid(tmp_path, fault):
    n_sent = 0

    def after_five(prompt, n):
        nonlocal n_sent
        n_sent += 1
        return fault if n_sent > 5 else None

    with StubAnthropic(verdict, after_five) as stub:
        with pytest.raises(AccountError) as error:
            run(stub, tmp_path, questions(100), max_in_flight=2)
        assert "account with credit and access to claude-test is needed" in str(error.value)
        assert KEY not in str(error.value)
        assert sum(stub.asked.values()) <= 7
        stub.fault = lambda prompt, n: None
        run(stub, tmp_path, questions(100))
        assert stub.asked_after_verdict == 0


def test_a_wrong_model_stops_and_a_refused_request_does_not(tmp_path):
    with StubAnthropic(fault=lambda prompt, n: "404") as stub:
        with pytest.raises(ServerError, match=r"no-such-model.*correct judge\.model"):
            run(stub, tmp_path, questions(50), max_in_flight=1)
        assert sum(stub.asked.values()) == 1
    with StubAnthropic(verdict, lambda p, n: "400" if p == "prompt 0" else None) as stub:
        answers = run(stub, tmp_path, questions(30))
        assert answers["q0"].value is None
        assert "prompt is too long" in answers["q0"].reason
        assert all(answers[f"q{i}"].value == i % 4 for i in range(1, 30))


def test_a_body_that_the_api_refuses_stops_the_job(tmp_path):
    with StubAnthropic() as stub:
        with pytest.raises(ServerError, match=r"temperature: this.*judge\.extra_body"):
            run(stub, tmp_path, questions(200), extra_body={"temperature": 0}, max_in_flight=4)
        assert len(stub.refused_bodies) < 20


def test_a_question_that_always_fails_is_given_up_and_asked_again_next_time(tmp_path):
    with StubAnthropic(verdict, lambda p, n: "500" if p == "prompt 0" else None) as stub:
        answers = run(stub, tmp_path, questions(5), patience_s=0.0)
        assert answers["q0"].value is None
        assert "500 api_error" in answers["q0"].reason
        stub.fault = lambda p, n: None
        assert run(stub, tmp_path, questions(5))["q0"].value == 0


def test_a_server_that_never_answers_stops_the_job(tmp_path):
    with StubAnthropic(fault=lambda p, n: "503") as stub, pytest.raises(ServerError, match="503"):
        run(stub, tmp_path, questions(50), patience_s=0.0, max_in_flight=2)
    with pytest.raises(ServerError, match="no connection"):  # it is closed now
        run(stub, tmp_path, questions(50), patience_s=0.0, max_in_flight=2)


def test_the_budget_is_announced_and_not_crossed_over_runs(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    price = (1000.0, 1000.0)  # USD for a million tokens: a fifth of a cent and more a question
    with StubAnthropic(verdict) as stub:
        settings = {"price": price, "max_cost_usd": 0.5, "max_tokens": 4}
        with pytest.raises(BudgetError, match=r"questions left, the next could cross \$0\.5000"):
            run(stub, tmp_path, questions(150), **settings)
        assert "asking claude-test: 150 calls, about 19" in caplog.text
        costs = [row["usd"] for _, row in Journal(tmp_path, "x").rows()]
        assert 0.4 < sum(costs) <= 0.5
        assert len(costs) == sum(stub.answered.values())  # answers on their way were kept
        n_before = sum(stub.asked.values())
        with pytest.raises(BudgetError):  # another job, the same money
            ask(
                questions(300, 150),
                judge(stub, **settings),
                journal_folder=tmp_path,
                owner="001",
                what="x",
            )
        assert sum(stub.asked.values()) - n_before <= 20
        assert sum(row["usd"] for _, row in Journal(tmp_path, "x").rows()) <= 0.5
        run(stub, tmp_path, questions(150), **settings | {"max_cost_usd": 50.0})
        assert stub.asked_after_verdict == 0


def test_lost_answers_count_as_paid(tmp_path):
    with StubAnthropic(verdict, once("cut")) as stub:
        run(stub, tmp_path, questions(1), price=(1000.0, 1000.0))
        rows = [row for _, row in Journal(tmp_path, "x").rows()]
        assert [row["lost"] for row in rows if "lost" in row] == ["connection dropped"]


def test_a_missing_key_is_told_and_a_server_of_ones_own_needs_none(tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(AccountError, match="ANTHROPIC_API_KEY: not set"):
        ask(
            questions(1),
            HostedJudge(backend="anthropic", model="m"),
            journal_folder=tmp_path,
            owner="0",
            what="x",
        )
    with StubAnthropic(key="none") as stub:
        assert run(stub, tmp_path, questions(1))["q0"].value == 3


def test_requests_and_tokens_a_minute_are_kept_to(tmp_path):
    with StubAnthropic(verdict) as stub:
        run(stub, tmp_path, questions(70), requests_per_minute=3000)  # 50 a second, 50 at once
        assert stub.times[-1] - stub.times[0] >= 19 / 50


def test_the_window_is_full_and_not_more(tmp_path):
    with StubAnthropic(verdict, latency_s=0.05) as stub:
        run(stub, tmp_path, questions(60), max_in_flight=6)
        assert stub.most_in_flight == 6


@given(st.lists(st.booleans(), min_size=1, max_size=400), st.integers(1, 64))
def test_the_window_stays_within_its_bounds(refusals, widest):
    pace = Pace(widest, None, None)
    for now, refused in enumerate(refusals, start=1):
        pace.result(float(now), now - 0.5, refused)
        assert 1 <= pace.window <= widest


def test_the_window_halves_on_many_refusals_waits_as_told_and_recovers():
    pace = Pace(32, None, None)
    for i in range(4):
        pace.result(10.0, 9.0, True, told=5.0)
        assert pace.window == (32 if i < 3 else 16)
    assert pace.delay(10.0) == 5.0
    for _ in range(100):
        pace.result(10.5, 9.5, True, told=5.0)  # sent before the halving: the same event
    assert pace.window == 16
    for i in range(200):
        pace.result(20.0 + i, 19.0 + i, i % 20 == 0)  # a few refusals are no reason
    assert pace.window == 32


@pytest.mark.parametrize(
    ("status", "kind", "code", "message", "action"),
    [
        (429, "rate_limit_error", None, "", "wait"),
        (429, "rate_limit_error", "ramp_limit_exceeded", "", "wait"),
        (429, "rate_limit_error", "contract_spend_limit_reached", "", "account"),
        (529, "overloaded_error", None, "", "slow"),
        (500, "api_error", None, "", "retry"),
        (502, None, None, "", "retry"),
        (504, "timeout_error", None, "", "retry"),
        (409, "conflict_error", None, "", "retry"),
        (400, "invalid_request_error", None, "bad field", "invalid"),
        (400, "invalid_request_error", None, "You have reached your API usage limits", "account"),
        (413, "request_too_large", None, "", "invalid"),
        (401, "authentication_error", None, "", "account"),
        (402, "billing_error", None, "", "account"),
        (403, "permission_error", None, "", "account"),
        (404, "not_found_error", None, "", "setup"),
        (None, "overloaded_error", None, "", "slow"),
        (None, "api_error", None, "", "retry"),
        (None, "invalid_request_error", None, "too long", "invalid"),
    ],
)
def test_what_an_error_of_the_api_means(status, kind, code, message, action):
    assert failure_of_status(status, kind, code, message).action == action


def test_retry_after_in_all_its_forms():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "1500", "retry-after": "7"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_one_job_asks_at_a_time_and_a_dead_one_gives_its_turn_up(tmp_path):
    code = f"import time; from axiskit.asking import turn\nwith turn({str(tmp_path)!r}):\n"
    code += "    print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    waiting = subprocess.Popen(
        [sys.executable, "-c", code.replace("time.sleep(60)", "")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.0)
    other.kill()
    other.wait()
    assert waiting.communicate(timeout=10)[0] == "in\n"
    with turn(tmp_path):
        pass


def test_kill_9_twice_then_the_scores_of_a_smooth_run(tmp_path):
    count = 120
    with StubAnthropic(verdict, mixed_faults(0.1), latency_s=0.02, slow_s=0.2) as stub:
        for goal in (30, 70):
            process = start_asker(stub, tmp_path / "torn", count)
            while sum(stub.answered.values()) < goal:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        journaled = len(list(Journal(tmp_path / "torn", "x").rows()))
        process = start_asker(stub, tmp_path / "torn", count)
        torn = json.loads(process.communicate(timeout=60)[0])
        # of what was answered, only what was on its way when a kill came is asked again
        assert stub.asked_after_verdict <= 2 * 8
        assert journaled >= 70 - 2 * 8
    with StubAnthropic(verdict, mixed_faults(0.1), latency_s=0.0, slow_s=0.1) as stub:
        smooth = run(stub, tmp_path / "smooth", questions(count), max_in_flight=32)
        assert stub.asked_after_verdict == 0
        assert all(answer.value is not None or answer.reason for answer in smooth.values())
    # a fault strikes a prompt's first request, which a kill may have taken: a refusal is then gone
    differ = [n for n in torn if torn[n] != smooth[n].value]
    assert all(smooth[n].reason == "the judge refused (bio)" for n in differ)
    assert len(differ) <= 2 * 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_waits_for_answers_on_their_way(tmp_path, number):
    with StubAnthropic(verdict, latency_s=0.2) as stub:
        process = start_asker(stub, tmp_path, 1000)
        while sum(stub.answered.values()) < 16:
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate(timeout=20)[1]
        assert "InterruptError: interrupted; all answers so far are kept" in error
        assert len(list(Journal(tmp_path, "x").rows())) == sum(stub.answered.values())


def test_ten_percent_faults_of_all_kinds(tmp_path):
    with StubAnthropic(verdict, mixed_faults(0.1), latency_s=0.01, slow_s=0.3) as stub:
        answers = run(stub, tmp_path, questions(300), max_in_flight=16)
        assert len(stub.faults) >= 8
        for name, answer in answers.items():
            if answer.value is None:
                assert answer.reason == "the judge refused (bio)"
            else:
                assert answer.value == int(name[1:]) % 4
        assert stub.asked_after_verdict == 0
