"""The Message Batches API: half the price, an answer within a day, and nothing lost in between.

What is submitted is in a registry (a journal of its own) before it is sent, and the batch's id as
soon as the server gives it. So a job that dies leaves its batches running, and the next one
collects them. Where the id never came, the server's list of batches is searched for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from axiskit.asking import Work, on_interrupt, stop_error, turn
from axiskit.errors import AxiskitError
from axiskit.journal import Journal
from axiskit.judge_failures import Failure, failure_of, failure_of_status
from axiskit.rollouts import digest

if TYPE_CHECKING:
    import anthropic

_log = logging.getLogger(__name__)

_MAX_REQUESTS = 100_000  # of one batch
_MAX_BYTES = 200_000_000  # the API allows 256 MB
_ROUNDS = 3  # batches in which a question may fail before it is given up
_CLOCK_SKEW_S = 300.0


@dataclass
class _Batch:
    """A batch of the registry.

    Attributes:
        uid: Our name for it, known before it is sent.
        usd: What it can cost at most.
        id: The server's name for it; None until it was told, "" if it was never made.
        failed: Keys that it did not answer.
    """

    uid: str
    keys: list[str]
    usd: float
    at: float
    id: str | None = None
    failed: set[str] = field(default_factory=set)


async def ask_batches(client: anthropic.AsyncAnthropic, work: Work) -> None:
    """Submit all that is open, wait, collect; again for what a batch left open.

    Raises:
        AccountError, BudgetError, ServerError, InterruptError: See :func:`axiskit.asking.ask`.
            Batches that were submitted go on (but with ``judge.cancel_on_interrupt``, when
            interrupted).
    """
    asker = _BatchAsker(client, work)
    with asker.registry, on_interrupt(asker.interrupted.set) as interrupted:
        async with client:
            await asker.run()
            if asker.interrupted.is_set():
                await asker.leave()
                raise interrupted()
    if asker.stop:
        raise asker.stop


class _BatchAsker:
    def __init__(self, client: anthropic.AsyncAnthropic, work: Work) -> None:
        self.registry = Journal(work.journal.folder / "batches", "batches")
        self.interrupted = asyncio.Event()
        self.stop: AxiskitError | None = None
        self._client = client
        self._work = work
        self._rounds: Counter[str] = Counter()
        self._announced = False
        self._last_contact = time.monotonic()

    async def run(self) -> None:
        """Until nothing is open, or until told to stop."""
        while self._work.open and not self._stopping():
            batches = self._batches()
            covered = {k for b in self._ours(batches) for k in b.keys if k not in b.failed}
            if not covered.issuperset(self._work.open):
                with turn(self._work.journal.folder):
                    await self._submit()
                batches = self._batches()
            waiting = self._ours(batches)
            if not waiting:
                continue
            ended = [batch for batch in waiting if await self._has_ended(batch)]
            for batch in ended:
                await self._collect(batch)
            if not ended and not self._stopping():
                await self._sleep(self._work.judge.poll_s)

    async def leave(self) -> None:
        """What an interruption does to the batches under way."""
        ids = [batch.id for batch in self._ours(self._batches()) if batch.id]
        if not self._work.judge.cancel_on_interrupt:
            _log.warning("batches go on: %s; the next run collects them", ", ".join(ids))
            return
        for id_ in ids:
            outcome = await self._call(self._client.messages.batches.cancel(id_))
            said = outcome.message if isinstance(outcome, Failure) else "canceled"
            _log.warning("batch %s: %s", id_, said)

    def _stopping(self) -> bool:
        return self.stop is not None or self.interrupted.is_set()

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until interrupted."""
        waiting = asyncio.create_task(self.interrupted.wait())
        await asyncio.wait([waiting], timeout=seconds)
        waiting.cancel()

    async def _call(self, call: Any) -> Any:
        """The result of a call of the SDK, or a Failure; what ends the job is noted."""
        try:
            result = await call
        except Exception as error:
            failure = failure_of(error)
            _log.info("batches: %s", failure.message)
            if failure.action == "account":
                self.stop = self.stop or stop_error(self._work.judge, failure)
            return failure
        self._last_contact = time.monotonic()
        return result

    def _batches(self) -> list[_Batch]:
        """All batches of the run, by whatever job."""
        batches: dict[str, _Batch] = {}
        events = sorted((row for _, row in self.registry.rows()), key=lambda row: row["at"])
        for row in events:
            if row["event"] == "intent":
                batches[row["batch"]] = _Batch(row["batch"], row["keys"], row["usd"], row["at"])
            elif row["event"] == "made":
                batches[row["batch"]].id = row["id"]
            elif row["event"] == "failed":
                batches[row["batch"]].failed.update(row["keys"])
        return list(batches.values())

    def _note(self, event: str, batch: str, **more: Any) -> None:
        row = {"event": event, "batch": batch, "at": time.time(), **more}
        self.registry.append(digest(event, batch, uuid.uuid4().hex), row)

    def _ours(self, batches: Iterable[_Batch]) -> list[_Batch]:
        """Those that may yet answer what is open here."""
        return [
            batch
            for batch in batches
            if batch.id and any(k in self._work.open and k not in batch.failed for k in batch.keys)
        ]

    async def _submit(self) -> None:
        """Submit what no batch covers, as much as the budget allows. Called in turn."""
        work = self._work
        answered = work.count_spent()
        batches = self._batches()
        for batch in batches:
            if batch.id is None:  # its job died, or the answer was lost: nobody else is at it
                await self._find(batch)
        if self._stopping():
            return
        covered: set[str] = set()
        reserved = 0.0
        for batch in batches:
            live = [k for k in batch.keys if batch.id and k not in batch.failed]
            covered.update(live)
            reserved += batch.usd * sum(k not in answered for k in live) / len(batch.keys)
        fresh = [key for key in work.open if key not in covered]
        if fresh and not self._announced:
            work.announce()
            self._announced = True
        while fresh and not self._stopping():
            keys: list[str] = []
            usd, n_bytes = 0.0, 0
            for key in fresh[:_MAX_REQUESTS]:
                prompt = work.open[key].prompt
                n_bytes += len(prompt.encode()) + 1000
                if n_bytes > _MAX_BYTES or not work.fits(reserved + usd + work.worst_usd(prompt)):
                    break
                usd += work.worst_usd(prompt)
                keys.append(key)
            if not keys:  # what is under way may cost less than is kept free for it
                if not self._ours(self._batches()):
                    self.stop = work.over_budget()
                return
            if not await self._make(keys, usd):
                return
            reserved += usd
            fresh = fresh[len(keys) :]

    async def _make(self, keys: list[str], usd: float) -> bool:
        """Submit one batch; whether to go on."""
        batch = _Batch(uuid.uuid4().hex, keys, usd, time.time())
        self._note("intent", batch.uid, keys=keys, usd=usd)
        judge = self._work.judge
        requests = [
            {"custom_id": key, "params": judge.body(self._work.open[key].prompt)} for key in keys
        ]
        made = await self._call(self._client.messages.batches.create(requests=requests))  # type: ignore[arg-type]
        if not isinstance(made, Failure):
            _log.info("batch %s: %d questions submitted", made.id, len(keys))
            self._note("made", batch.uid, id=made.id)
            return True
        if made.action in ("setup", "invalid"):
            self.stop = self.stop or stop_error(judge, made)
        if made.action == "retry":  # perhaps it was made: looked for before it is sent again
            self._patience(made)
        else:
            self._note("made", batch.uid, id="")
        if not self._stopping():
            await self._sleep(made.retry_after or min(judge.poll_s, 10.0))
        return False

    async def _find(self, batch: _Batch) -> None:
        """Look for a batch whose id was never told in the server's list."""
        known = {other.id for other in self._batches()}
        try:
            async for found in self._list():
                counts = found.request_counts.to_dict()
                if (
                    found.id not in known
                    and found.created_at.timestamp() >= batch.at - _CLOCK_SKEW_S
                    and sum(counts.values()) == len(batch.keys)
                ):
                    _log.warning("batch %s: found again", found.id)
                    self._note("made", batch.uid, id=found.id)
                    batch.id = found.id
                    return
        except Exception as error:
            failure = failure_of(error)
            if failure.action != "setup":  # a server without a list cannot help
                if failure.action == "account":
                    self.stop = self.stop or stop_error(self._work.judge, failure)
                self._patience(failure)
                await self._sleep(failure.retry_after or min(self._work.judge.poll_s, 10.0))
                return
        self._note("made", batch.uid, id="")
        batch.id = ""

    async def _list(self) -> AsyncIterator[Any]:
        async for found in self._client.messages.batches.list(limit=100):
            yield found

    def _patience(self, failure: Failure) -> None:
        """Stop once the server has not answered for long."""
        if time.monotonic() - self._last_contact > self._work.judge.patience_s:
            self.stop = self.stop or stop_error(self._work.judge, failure)

    async def _has_ended(self, batch: _Batch) -> bool:
        assert batch.id
        state = await self._call(self._client.messages.batches.retrieve(batch.id))
        if not isinstance(state, Failure):
            return bool(state.processing_status == "ended")
        if state.action in ("setup", "invalid"):
            _log.warning("batch %s: the server knows it no more; asked again", batch.id)
            self._fail(batch, {})
        else:
            self._patience(state)
        return False

    async def _collect(self, batch: _Batch) -> None:
        """Journal the results as they stream in; note what stayed without an answer."""
        assert batch.id
        failures: dict[str, Failure] = {}
        results = await self._call(self._client.messages.batches.results(batch.id))
        if isinstance(results, Failure):
            self._patience(results)
            await self._sleep(results.retry_after or min(self._work.judge.poll_s, 10.0))
            return
        try:
            async for entry in results:
                if entry.custom_id in self._work.open and entry.custom_id not in batch.failed:
                    failure = self._settle(batch, entry)
                    if failure:
                        failures[entry.custom_id] = failure
        except Exception as error:  # the stream broke: what came is kept, the rest comes next time
            _log.info("batch %s: results: %s", batch.id, failure_of(error).message)
            await self._sleep(min(self._work.judge.poll_s, 10.0))
            return
        refused = [key for key, failure in failures.items() if failure.action == "invalid"]
        if len(refused) == len(batch.keys):
            self.stop = self.stop or stop_error(self._work.judge, failures[refused[0]])
        self._fail(batch, failures)

    def _settle(self, batch: _Batch, entry: Any) -> Failure | None:
        """Keep a row's answer, or say why it has none."""
        result = entry.result.to_dict()
        if result["type"] == "succeeded":
            worst = batch.usd / len(batch.keys)
            return self._work.keep(entry.custom_id, result["message"], worst)
        if result["type"] != "errored":
            return Failure("retry", f"{result['type']} in a batch")
        error = result["error"]["error"]
        code = (error.get("details") or {}).get("error_code")
        failure = failure_of_status(None, error["type"], code, error["message"])
        if failure.action == "account":
            self.stop = self.stop or stop_error(self._work.judge, failure)
        return failure

    def _fail(self, batch: _Batch, failures: Mapping[str, Failure]) -> None:
        """Note what the batch left open here; it is asked again, or given up."""
        left = [key for key in batch.keys if key in self._work.open and key not in batch.failed]
        if left:
            self._note("failed", batch.uid, keys=left)
        for key in left:
            failure = failures.get(key) or Failure("retry", "not among a batch's results")
            self._rounds[key] += 1
            if failure.action == "invalid":
                self._work.give_up(key, f"request refused: {failure.message}")
            elif self._rounds[key] >= _ROUNDS:
                self._work.give_up(key, f"{failure.message} ({_ROUNDS} batches)")
