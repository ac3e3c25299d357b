"""Asking in batches, over real HTTP."""

import logging
import signal
import time

import pytest
from asking_helpers import questions, run, start_asker, verdict
from stub_anthropic import KEY, StubAnthropic

from axiskit.errors import AccountError, BudgetError, ServerError
from axiskit.journal import Journal


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def batch(stub, folder, asked, **settings):
    return run(stub, folder, asked, **{"backend": "anthropic-batch", "poll_s": 0.01} | settings)


def test_answers_come_by_their_ids_in_any_order_and_are_shared_with_single_requests(tmp_path):
    with StubAnthropic(verdict, polls_until_end=3) as stub:
        answers = batch(stub, tmp_path, questions(30))
        assert all(answers[f"q{i}"].value == i % 4 for i in range(30))
        assert stub.created == 1
        batch(stub, tmp_path, questions(30))
        run(stub, tmp_path, questions(30))
        assert set(stub.asked.values()) == {1}


@pytest.mark.parametrize("fault", ["expired", "canceled", "500", "529", "wrong json"])
def test_rows_without_an_answer_are_asked_again(tmp_path, fault):
    def strike(prompt, n):
        return fault if n == 0 and prompt in ("prompt 1", "prompt 4") else None

    with StubAnthropic(verdict, strike) as stub:
        answers = batch(stub, tmp_path, questions(6))
        assert [answers[f"q{i}"].value for i in range(6)] == [0, 1, 2, 3, 0, 1]
        assert stub.created == 2
        assert stub.asked_after_verdict == 0
        assert sum(stub.asked.values()) == 8


def test_rows_that_never_come_are_given_up_with_their_reason(tmp_path):
    faults = {"prompt 0": "expired", "prompt 1": "400", "prompt 2": "unreadable"}
    with StubAnthropic(verdict, lambda prompt, n: faults.get(prompt)) as stub:
        answers = batch(stub, tmp_path, questions(4))
        assert answers["q0"].reason == "expired in a batch (3 batches)"
        assert "request refused: invalid_request_error: prompt is too long" in answers["q1"].reason
        assert answers["q2"].reason == "unreadable verdict, cut at judge.max_tokens"
        assert answers["q3"].value == 3
        assert stub.asked == {"prompt 0": 3, "prompt 1": 1, "prompt 2": 2, "prompt 3": 1}


@pytest.mark.parametrize("fault", ["429", "500", "hang up"])
def test_a_batch_that_was_made_without_our_knowing_is_found_again(tmp_path, fault):
    with StubAnthropic(verdict) as stub:
        stub.create_faults = [fault]
        answers = batch(stub, tmp_path, questions(5))
        assert [answers[f"q{i}"].value for i in range(5)] == [0, 1, 2, 3, 0]
        assert stub.created == 1  # "hang up": it was made, and is not made again
        assert set(stub.asked.values()) == {1}


def test_a_results_stream_that_breaks_is_read_again(tmp_path):
    with StubAnthropic(verdict) as stub:
        stub.results_faults = ["cut", "cut"]
        answers = batch(stub, tmp_path, questions(40))
        assert all(answers[f"q{i}"].value == i % 4 for i in range(40))
        assert set(stub.asked.values()) == {1}
        keys = [key for key, _ in Journal(tmp_path, "x").rows()]
        assert len(keys) == len(set(keys)) == 40


@pytest.mark.parametrize("fault", ["401", "credit"])
def test_account_trouble_at_submission_stops(tmp_path, fault):
    with StubAnthropic() as stub:
        stub.create_faults = [fault]
        with pytest.raises(AccountError, match="account with credit"):
            batch(stub, tmp_path, questions(5))
        batch(stub, tmp_path, questions(5))  # the credit is back
        assert stub.created == 1


def test_credit_that_ends_within_a_batch_keeps_what_was_answered(tmp_path):
    with StubAnthropic(
        verdict, lambda p, n: "credit" if p > "prompt 4" and n == 0 else None
    ) as stub:
        with pytest.raises(AccountError, match="credit balance"):
            batch(stub, tmp_path, questions(9))
        batch(stub, tmp_path, questions(9))
        assert stub.asked_after_verdict == 0


def test_a_body_that_the_api_refuses_stops_the_job(tmp_path):
    with StubAnthropic() as stub, pytest.raises(ServerError, match=r"judge\.extra_body"):
        batch(stub, tmp_path, questions(5), extra_body={"temperature": 0})


def test_a_batch_that_the_server_forgot_is_asked_again(tmp_path):
    with StubAnthropic(verdict, polls_until_end=10**6) as stub:
        process = start_asker(stub, tmp_path, 5, "anthropic-batch")
        wait_for(lambda: stub.batches, process)
        process.kill()
        process.wait()
        stub.batches.clear()
        stub.polls_until_end = 1
        answers = batch(stub, tmp_path, questions(5))
        assert [answers[f"q{i}"].value for i in range(5)] == [0, 1, 2, 3, 0]


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_batch_outlives_its_job_and_the_next_collects_it(tmp_path, number):
    with StubAnthropic(verdict, polls_until_end=10**6) as stub:
        process = start_asker(stub, tmp_path, 25, "anthropic-batch")
        wait_for(
            lambda: stub.batches and next(iter(stub.batches.values()))["polls_left"] < 10**6,
            process,
        )
        process.send_signal(number)
        error = process.communicate(timeout=20)[1]
        if number == signal.SIGTERM:
            assert "batches go on: msgbatch_" in error
            assert "InterruptError" in error
        assert not any(b["canceled"] for b in stub.batches.values())
        stub.end_batches()
        answers = batch(stub, tmp_path, questions(25))
        assert all(answers[f"q{i}"].value == i % 4 for i in range(25))
        assert stub.created == 1
        assert set(stub.asked.values()) == {1}


def test_an_interruption_can_cancel_and_what_was_canceled_is_asked_again(tmp_path):
    with StubAnthropic(verdict, polls_until_end=10**6) as stub:
        process = start_asker(stub, tmp_path, 5, "anthropic-batch", cancel=True)
        wait_for(lambda: any(b["polls_left"] < 10**6 for b in stub.batches.values()), process)
        process.send_signal(signal.SIGINT)
        assert ": canceled" in process.communicate(timeout=20)[1]
        assert all(batch["canceled"] for batch in stub.batches.values())
        stub.polls_until_end = 1
        answers = batch(stub, tmp_path, questions(5))
        assert [answers[f"q{i}"].value for i in range(5)] == [0, 1, 2, 3, 0]
        assert set(stub.asked.values()) == {1}  # a canceled row was not worked on


def test_budget_in_batches_goes_in_portions_and_counts_what_is_under_way(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    price = (1000.0, 1000.0)  # half of it in batches
    with StubAnthropic(verdict) as stub:
        settings = {"price": price, "max_tokens": 4, "max_cost_usd": 0.2}
        with pytest.raises(BudgetError):
            batch(stub, tmp_path, questions(300), **settings)
        assert stub.created > 1  # what a portion did not cost was spent on the next
        spent = sum(row["usd"] for _, row in Journal(tmp_path, "x").rows())
        assert 0.15 < spent <= 0.2
        assert "half of it in batches" in caplog.text
        batch(stub, tmp_path, questions(300), **settings | {"max_cost_usd": None})
        assert stub.asked_after_verdict == 0
