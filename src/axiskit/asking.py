"""Asking a judge over HTTP: every question once, every answer kept, nothing guessed.

The server speaks the Anthropic Messages API (Anthropic's own, or any at ``judge.base_url``). What
is asked, and how an answer is read, is the caller's: a :class:`Question` is a prompt and a parser.

An answer is in the journal, with its text and what it cost, before it is used; its key is a hash of
all that is sent. So whatever kills a job, the next one asks only what has no answer yet. An
unreadable answer is asked for once more, then the question stays unscored. One job asks at a time
(:func:`turn`), so limits and budget hold for a run and not only for a shard of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from axiskit.errors import (
    AccountError,
    AxiskitError,
    BudgetError,
    ConfigError,
    InterruptError,
    ServerError,
)
from axiskit.journal import Journal
from axiskit.judge_failures import API_KEY, Failure
from axiskit.progress import Progress
from axiskit.rollouts import digest

if TYPE_CHECKING:
    import anthropic

_log = logging.getLogger(__name__)

API_URL = "https://api.anthropic.com"
BATCH_DISCOUNT = 0.5
_ATTEMPTS = 2  # an unreadable answer is asked for once more


@dataclass(frozen=True)
class HostedJudge:
    """A judge behind an Anthropic-compatible server; docs/config.md has each key under ``judge``.

    Attributes:
        price: USD per million tokens in and out, without the discount of batches; None: free.
        patience_s: Seconds for which one question is tried again before it is given up.
    """

    backend: Literal["anthropic", "anthropic-batch"]
    model: str
    base_url: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 16
    max_in_flight: int = 32
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_s: float = 120.0
    price: tuple[float, float] | None = None
    max_cost_usd: float | None = None
    poll_s: float = 60.0
    cancel_on_interrupt: bool = False
    patience_s: float = 600.0

    def body(self, prompt: str) -> dict[str, Any]:
        """The request's body: one user message, and ``extra_body`` less what is null in it."""
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": prompt}],
            **{name: value for name, value in self.extra_body.items() if value is not None},
        }

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """What tokens cost, in USD."""
        if self.price is None:
            return 0.0
        discount = BATCH_DISCOUNT if self.backend == "anthropic-batch" else 1.0
        return discount * (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6


def hosted_judge(section: Mapping[str, Any]) -> HostedJudge:
    """The judge that a ``judge`` section of the config describes."""
    names = {item.name for item in fields(HostedJudge)} & section.keys()
    price = section.get("prices", {}).get(section["model"])
    return HostedJudge(
        **{name: section[name] for name in names}, price=tuple(price) if price else None
    )


@dataclass(frozen=True)
class Question:
    """One prompt, and how its answer is read.

    Attributes:
        parse: Answer's text to value; None where it cannot be read.
        repeat: Asking anew what was answered before: the count of the repetition.
    """

    prompt: str
    parse: Callable[[str], int | None]
    repeat: int = 0

    def keys(self, judge: HostedJudge) -> list[str]:
        """Journal keys of the first and the second attempt: a hash of all that is sent."""
        sent = [judge.base_url, judge.body(self.prompt), self.repeat]
        return [digest("ask", sent, attempt) for attempt in range(_ATTEMPTS)]


@dataclass(frozen=True)
class Answer:
    """What came back: a value, or the reason why there is none; tokens over all attempts."""

    value: int | None
    reason: str | None
    raw: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


def require_key(judge_base_url: str | None) -> str:
    """The API key, from the environment only.

    Raises:
        AccountError: It is not set. A server of one's own (``judge.base_url``) needs none.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key and judge_base_url is None:
        raise AccountError(
            f"{API_KEY}: not set, it is needed by judge.backend; export it, or set judge.base_url "
            "to a server of your own"
        )
    return key or "none"


def require_package() -> None:
    """Refuse to go on without the SDK.

    Raises:
        ConfigError: The package ``anthropic`` is not installed.
    """
    if importlib.util.find_spec("anthropic") is None:
        raise ConfigError(
            "judge.backend: the package anthropic is not installed, it is needed to ask a hosted "
            "judge; pip install 'axiskit[judge]'"
        )


def ask(
    questions: Mapping[str, Question],
    judge: HostedJudge,
    *,
    journal_folder: str | Path,
    owner: str,
    what: str,
) -> dict[str, Answer]:
    """Answer each question, from the journal or by asking; equal prompts are asked once.

    Args:
        questions: By any name.
        journal_folder: Where answers are kept; its sum is what ``max_cost_usd`` limits.
        owner: Start of this job's journal file, e.g. its shard.
        what: Name of the work, for progress and log.

    Returns:
        An answer for every name; a question that could not be answered has its reason.

    Raises:
        AccountError: The server refuses the key, or credit is used up. What was paid for is kept.
        BudgetError: The next question could cost more than ``max_cost_usd`` in all.
        ServerError: The server does not answer, or refuses all it is sent.
        InterruptError: The job was interrupted; answers on their way were waited for.
    """
    with Journal(journal_folder, owner) as journal:
        work = Work(questions, judge, journal)
        if work.open:
            client = make_client(judge)  # a missing key is told before anything else
            with Progress(what, len(work.all), len(work.all) - len(work.open), "answers") as bar:
                work.progress = bar
                if judge.backend == "anthropic-batch":
                    from axiskit.batches import ask_batches

                    asyncio.run(ask_batches(client, work))
                else:
                    from axiskit.messages import ask_messages

                    with turn(journal_folder):
                        work.count_spent()
                        work.announce()
                        asyncio.run(ask_messages(client, work))
        return {name: work.answer(question) for name, question in questions.items()}


def make_client(judge: HostedJudge) -> anthropic.AsyncAnthropic:
    """The SDK's client. Its own retries are off: what is tried again, and when, is decided here."""
    require_package()
    import anthropic

    return anthropic.AsyncAnthropic(
        api_key=require_key(judge.base_url),
        base_url=judge.base_url or API_URL,  # never from the environment
        max_retries=0,
        timeout=judge.timeout_s,
    )


@contextlib.contextmanager
def turn(folder: str | Path) -> Iterator[None]:
    """Wait until no other job of this run asks; a job that dies gives its turn up."""
    path = Path(folder) / ".turn"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another shard asks the judge; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def estimated_tokens(prompt: str) -> int:
    """About how many tokens a prompt has: one for three bytes of UTF-8."""
    return len(prompt.encode()) // 3 + 10


def most_tokens(prompt: str) -> int:
    """More tokens than a prompt is likely to have: one for two bytes of UTF-8."""
    return len(prompt.encode()) // 2 + 50


class Work:
    """What is to be asked, what was answered, what was spent. Both backends work on it.

    Attributes:
        open: Key to question, for those that need asking: the attempt that has no answer yet.
        given_up: First key of a question to the reason why it has no answer in this run.
    """

    def __init__(
        self, questions: Mapping[str, Question], judge: HostedJudge, journal: Journal
    ) -> None:
        self.judge = judge
        self.journal = journal
        self.progress: Progress | None = None
        self.spent = 0.0
        self.given_up: dict[str, str] = {}
        self.all = {question.keys(judge)[0]: question for question in questions.values()}
        self._attempts = {
            key: keys
            for keys in (question.keys(judge) for question in self.all.values())
            for key in keys
        }
        self.rows = journal.read(self._attempts.keys())
        self.open: dict[str, Question] = {}
        for question in self.all.values():
            self._open_next(question)

    def _open_next(self, question: Question) -> bool:
        """Put the question's next attempt among the open ones, if it needs one."""
        for key in question.keys(self.judge):
            if key not in self.rows:
                self.open[key] = question
                return True
            if _is_final(self.rows[key], question):
                return False
        return False

    def count_spent(self) -> set[str]:
        """Add up what the journal says was spent, by all jobs so far; the keys that it has."""
        costs = {key: row.get("usd", 0.0) for key, row in self.journal.rows()}
        self.spent = sum(costs.values())
        return set(costs)

    def worst_usd(self, prompt: str) -> float:
        """More than one answer to a prompt is likely to cost, in USD."""
        return self.judge.usd(most_tokens(prompt), self.judge.max_tokens)

    def fits(self, usd: float) -> bool:
        """Whether so much may be spent on top."""
        limit = self.judge.max_cost_usd
        return limit is None or self.spent + usd <= limit

    def over_budget(self) -> BudgetError:
        """The error for work that the budget does not allow."""
        return BudgetError(
            f"{self.judge.model}: ${self.spent:.4f} spent, {len(self.open)} questions left, the "
            f"next could cross ${self.judge.max_cost_usd:.4f} (judge.max_cost_usd); raise it and "
            "run the same command again: all answers are kept"
        )

    def announce(self) -> None:
        """Say how many calls, tokens and dollars are ahead, before the first call."""
        judge = self.judge
        tokens_in = sum(estimated_tokens(question.prompt) for question in self.open.values())
        tokens_out = len(self.open) * judge.max_tokens
        if judge.price is None:
            cost = "no price known for this server (judge.prices), counted as free"
        else:
            limit = (
                "no limit" if judge.max_cost_usd is None else f"at most ${judge.max_cost_usd:.2f}"
            )
            cost = (
                f"about ${judge.usd(tokens_in, tokens_out):.2f} at ${judge.price[0]:g} and "
                f"${judge.price[1]:g} a million"
                f"{', half of it in batches' if judge.backend == 'anthropic-batch' else ''}; "
                f"${self.spent:.2f} spent before, {limit} in all (judge.max_cost_usd)"
            )
        _log.log(
            logging.WARNING if judge.price else logging.INFO,  # money is said on the terminal
            "asking %s: %d calls, about %d tokens in, at most %d out; %s",
            *(judge.model, len(self.open), tokens_in, tokens_out, cost),
        )

    def keep(self, key: str, body: Any, reserved: float) -> Failure | None:
        """Journal the answer in a response's body, and open the second attempt if it needs one.

        Args:
            reserved: What to count as spent for a body that does not say, in USD.

        Returns:
            The failure, if the body is no answer at all.
        """
        try:
            usage = body["usage"]
            row = {
                "raw": "".join(part["text"] for part in body["content"] if part["type"] == "text"),
                "stop": body["stop_reason"],
                "tokens_in": sum(
                    usage.get(name) or 0
                    for name in (
                        *("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
                    )
                ),
                "tokens_out": int(usage["output_tokens"]),
                "model": body["model"],
            }
        except (KeyError, TypeError, AttributeError, ValueError):
            self.lose(reserved, "garbled answer")
            return Failure("retry", "the answer is not one of the Messages API", perhaps_paid=True)
        if row["stop"] == "refusal":
            details = body.get("stop_details") or {}
            row["category"] = details.get("category") if isinstance(details, Mapping) else None
        row["usd"] = self.judge.usd(row["tokens_in"], row["tokens_out"])
        self.journal.append(key, row)
        self.rows[key] = row
        self.spent += row["usd"]
        if not self._open_next(self.open.pop(key)) and self.progress:
            self.progress.advance(1)
        return None

    def lose(self, usd: float, why: str) -> None:
        """Count an answer that may have been paid for and never came."""
        if usd:
            self.journal.append(digest("lost", uuid.uuid4().hex), {"lost": why, "usd": usd})
            self.spent += usd

    def attempts(self, key: str) -> list[str]:
        """The keys of all attempts of the question that a key belongs to."""
        return self._attempts[key]

    def give_up(self, key: str, reason: str) -> None:
        """Leave a question without an answer in this run; the next one asks again."""
        question = self.open.pop(key)
        self.given_up[question.keys(self.judge)[0]] = reason
        if self.progress:
            self.progress.advance(1)

    def answer(self, question: Question) -> Answer:
        """A question's answer, once nothing is open."""
        keys = question.keys(self.judge)
        rows = [self.rows[key] for key in keys if key in self.rows]
        if not rows:
            return Answer(None, self.given_up.get(keys[0], "not asked"))
        last = rows[-1]
        tokens = sum(row["tokens_in"] for row in rows), sum(row["tokens_out"] for row in rows)
        if last["stop"] == "refusal":
            category = f" ({last['category']})" if last.get("category") else ""
            return Answer(None, f"the judge refused{category}", last["raw"], *tokens)
        value = question.parse(last["raw"])
        if value is not None:
            return Answer(value, None, last["raw"], *tokens)
        reason = self.given_up.get(keys[0]) or (
            "unreadable verdict, cut at judge.max_tokens"
            if last["stop"] == "max_tokens"
            else "unreadable verdict"
        )
        return Answer(None, reason, last["raw"], *tokens)


def _is_final(row: Mapping[str, Any], question: Question) -> bool:
    return row["stop"] == "refusal" or question.parse(row["raw"]) is not None


def stop_error(judge: HostedJudge, failure: Failure) -> AxiskitError:
    """The error that ends a job for a failure that no other try can mend."""
    kept = "all answers so far are kept: run the same command again"
    where = judge.base_url or API_URL
    if failure.action == "account":
        return AccountError(
            f"{where}: {failure.message}; an account with credit and access to {judge.model} is "
            f"needed ({API_KEY}, judge.model); {kept}"
        )
    if failure.action in ("setup", "invalid"):
        return ServerError(
            f"{where}: refuses what it is sent: {failure.message}; correct judge.model, "
            f"judge.base_url, judge.extra_body or judge.max_tokens; {kept}"
        )
    return ServerError(
        f"{where}: no answer for {judge.patience_s:.0f} s: {failure.message}; {kept} once it "
        "answers"
    )


@contextlib.contextmanager
def on_interrupt(wake: Callable[[], None]) -> Iterator[Callable[[], InterruptError]]:
    """Within, SIGINT and SIGTERM call ``wake`` instead of ending the process; a second one ends it.

    Yields:
        A function that makes the error to end with.
    """
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        release()
        _log.warning("interrupted; waiting for answers on their way")
        wake()

    def release() -> None:
        for number in signals:
            with contextlib.suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(number)

    for number in signals:
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
            loop.add_signal_handler(number, first)
    try:
        yield lambda: InterruptError(
            "interrupted; all answers so far are kept: run the same command again"
        )
    finally:
        release()
