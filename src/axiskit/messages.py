"""The Messages API, one question a request: a full window, paced, tried again where that helps."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from axiskit.asking import HostedJudge, Work, estimated_tokens, on_interrupt, stop_error
from axiskit.errors import AxiskitError
from axiskit.judge_failures import Failure, failure_of

if TYPE_CHECKING:
    import anthropic

_log = logging.getLogger(__name__)

_MANY_INVALID = 10


class Pace:
    """How many requests may be in flight, and when the next may start.

    The window opens to ``max_in_flight``. It is judged in rounds of as many results as it is wide
    (at least 10): more than a tenth refused (429, 529) halves it and holds all back as long as the
    server told; a round without that widens it by an eighth of the maximum. A single refusal
    delays its own request only. Requests sent before the last halving do not count again.
    """

    def __init__(
        self, max_in_flight: int, requests_per_minute: int | None, tokens_per_minute: int | None
    ) -> None:
        self.max_in_flight = max_in_flight
        self.window = float(max_in_flight)
        self._seconds_a_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = self._held_until = self._halved_at = 0.0
        self._results = self._refused = 0
        self._told = 0.0

    def delay(self, now: float) -> float:
        """Seconds until the next request may start, by the limits alone."""
        return max(self._next_request, self._next_token, self._held_until) - now

    def start(self, now: float, tokens: int) -> None:
        """Count a request that starts. Up to a second's worth of unused rate is made up for."""
        self._next_request = max(self._next_request, now - 1.0) + self._seconds_a_request
        self._next_token = max(self._next_token, now - 1.0) + self._seconds_a_token * tokens

    def correct(self, tokens: int) -> None:
        """Count tokens that a request had beyond its estimate (or below it)."""
        self._next_token += self._seconds_a_token * tokens

    def result(self, now: float, started: float, refused: bool, told: float = 0.0) -> None:
        """Count a request that ended.

        Args:
            refused: By 429 or 529.
            told: Seconds that the server told to wait.
        """
        if started < self._halved_at:
            return
        self._results += 1
        self._refused += refused
        self._told = max(self._told, now + told if refused else 0.0)
        length = max(10.0, self.window)
        if self._refused > max(1.0, 0.1 * length):
            self.window = max(1.0, self.window / 2)
            self._held_until, self._halved_at = self._told, now
            _log.info("the server refuses too many requests: %d in flight now", int(self.window))
        elif self._results >= length:
            self.window = min(self.max_in_flight, self.window + max(1.0, self.max_in_flight / 8))
        else:
            return
        self._results = self._refused = 0
        self._told = 0.0


@dataclass
class _Request:
    """One question under way.

    Attributes:
        reserved: USD kept free in the budget while it is in flight.
    """

    key: str
    prompt: str
    reserved: float
    tries: int = 0
    first_try: float = 0.0
    started: float = 0.0


async def ask_messages(client: anthropic.AsyncAnthropic, work: Work) -> None:
    """Ask all that is open.

    Raises:
        AccountError, BudgetError, ServerError, InterruptError: See :func:`axiskit.asking.ask`.
            Answers on their way are waited for first.
    """
    asker = _Asker(client, work)
    with on_interrupt(asker.interrupt) as interrupted:
        async with client:
            await asker.run()
        if asker.interrupted:
            raise interrupted()
    if asker.stop:
        raise asker.stop


class _Asker:
    """The window of requests in flight: the next starts as soon as one ends."""

    def __init__(self, client: anthropic.AsyncAnthropic, work: Work) -> None:
        judge = work.judge
        self.work = work
        self.stop: AxiskitError | None = None
        self.interrupted = False
        self._client = client
        self._pace = Pace(judge.max_in_flight, judge.requests_per_minute, judge.tokens_per_minute)
        self._ready = deque(self._requests(work.open))
        self._later: list[tuple[float, int, _Request]] = []  # a heap: when, tie, request
        self._ties = itertools.count()
        self._ended: asyncio.Queue[tuple[_Request, Any] | None] = asyncio.Queue()
        self._flying: dict[str, asyncio.Task[None]] = {}
        self._reserved = 0.0
        self._last_answer = 0.0
        self._n_answers = self._n_invalid = 0

    def interrupt(self) -> None:
        """Start nothing more."""
        self.interrupted = True
        self._ended.put_nowait(None)

    async def run(self) -> None:
        """Start and settle requests until nothing is left, or until told to stop."""
        while True:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                self._ready.append(heapq.heappop(self._later)[2])
            wait = self._start_ready(now)
            stopping = self.stop or self.interrupted
            if not self._flying and (stopping or not (self._ready or self._later)):
                return
            try:
                result = await asyncio.wait_for(self._ended.get(), None if stopping else wait)
            except TimeoutError:
                continue
            if result is not None:
                self._settle(*result, time.monotonic())

    def _requests(self, keys: Iterable[str]) -> list[_Request]:
        prompts = {key: self.work.open[key].prompt for key in keys}
        return [_Request(key, text, self.work.worst_usd(text)) for key, text in prompts.items()]

    def _start_ready(self, now: float) -> float | None:
        """Start what may start; seconds until more may, None if only a result can change that."""
        wait = self._later[0][0] - now if self._later else None
        while self._ready and not (self.stop or self.interrupted):
            if len(self._flying) >= int(self._pace.window):
                return wait
            delay = self._pace.delay(now)
            if delay > 0:
                return delay if wait is None else min(delay, wait)
            request = self._ready[0]
            if not self.work.fits(self._reserved + request.reserved):
                if not self._flying:
                    self.stop = self.work.over_budget()
                return None  # what is in flight may cost less than is kept free for it
            self._ready.popleft()
            request.started = now
            request.first_try = request.first_try or now
            request.tries += 1
            self._reserved += request.reserved
            self._pace.start(now, estimated_tokens(request.prompt))
            self._flying[request.key] = asyncio.create_task(self._send(request))
        return wait

    async def _send(self, request: _Request) -> None:
        try:
            outcome: Any = await post(self._client, self.work.judge, request.prompt)
        except Exception as error:  # a bug: told by the loop, not lost in a task
            outcome = error
        self._ended.put_nowait((request, outcome))

    def _settle(self, request: _Request, outcome: Any, now: float) -> None:
        """Keep an answer, or decide what a failure means."""
        del self._flying[request.key]
        self._reserved -= request.reserved
        if isinstance(outcome, Exception):
            raise outcome
        failure: Failure | None = outcome if isinstance(outcome, Failure) else None
        if failure is None:
            failure = self.work.keep(request.key, outcome, request.reserved)
        elif failure.perhaps_paid:
            self.work.lose(request.reserved, failure.message)
        if failure is not None:
            self._settle_failure(request, failure, now)
            return
        self._n_answers += 1
        self._last_answer = now
        self._pace.result(now, request.started, refused=False)
        n_tokens = self.work.rows[request.key]["tokens_in"]
        self._pace.correct(n_tokens - estimated_tokens(request.prompt))
        attempts = self.work.attempts(request.key)
        self._ready.extend(self._requests(key for key in attempts if key in self.work.open))

    def _settle_failure(self, request: _Request, failure: Failure, now: float) -> None:
        judge = self.work.judge
        refused = failure.action in ("wait", "slow")
        self._pace.result(now, request.started, refused, failure.retry_after or 0.0)
        _log.info("%s (try %d): %s", request.key, request.tries, failure.message)
        if failure.action in ("account", "setup"):
            self.stop = self.stop or stop_error(judge, failure)
        elif failure.action == "invalid":
            self._n_invalid += 1
            if self._n_invalid >= _MANY_INVALID and not self._n_answers:
                self.stop = self.stop or stop_error(judge, failure)
            self.work.give_up(request.key, f"request refused: {failure.message}")
        elif failure.action != "wait" and now - request.first_try > judge.patience_s:
            if self._last_answer < request.first_try and (self._ready or self._later):
                self.stop = self.stop or stop_error(judge, failure)  # nobody is answered
            self.work.give_up(request.key, f"{failure.message} ({request.tries} tries)")
        else:
            due = now + _pause(request.tries, failure)
            heapq.heappush(self._later, (due, next(self._ties), request))


def _pause(tries: int, failure: Failure) -> float:
    """Seconds before the next try: as told, or doubled each time up to a minute; with jitter."""
    if failure.retry_after:
        return failure.retry_after * (1 + 0.1 * random.random())
    return float(min(60.0, 0.5 * 2 ** min(tries - 1, 10)) * (0.5 + random.random()))


async def post(client: anthropic.AsyncAnthropic, judge: HostedJudge, prompt: str) -> Any:
    """One request: the body of the answer, or a :class:`~axiskit.judge_failures.Failure`."""
    body = judge.body(prompt)
    try:
        response = await client.messages.with_raw_response.create(
            model=body.pop("model"),
            max_tokens=body.pop("max_tokens"),
            messages=body.pop("messages"),
            extra_body=body or None,
        )
        return response.http_response.json()
    except Exception as error:
        return failure_of(error)
