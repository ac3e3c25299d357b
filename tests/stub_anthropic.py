"""A stand-in for the Anthropic API: real HTTP on loopback, faults by script, requests counted.

It speaks POST /v1/messages and /v1/messages/batches (create, list, retrieve, cancel, results) in
the shapes of the API reference, version 2026-10-21, and refuses what that version refuses.

    with StubAnthropic(fault=lambda prompt, n: "500" if n == 0 else None) as stub:
        ...  # at stub.url

``fault(prompt, n)`` names what happens to the n-th request with this prompt (from 0), in a batch
to its n-th row; see FAULTS. As a program it prints its address and runs until it is ended; GET
/stats gives its counts.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-ant-test-0123456789abcdef"

ERRORS = {
    "429": (429, "rate_limit_error", "Number of requests has exceeded your rate limit"),
    "529": (529, "overloaded_error", "Overloaded"),
    "500": (500, "api_error", "Internal server error"),
    "503": (503, "api_error", "Service unavailable"),
    "400": (400, "invalid_request_error", "prompt is too long: 1000001 tokens > 1000000 maximum"),
    "401": (401, "authentication_error", "invalid x-api-key: {key}"),
    "403": (403, "permission_error", "Your API key has no access to this model"),
    "402": (402, "billing_error", "There is an issue with your billing"),
    "404": (404, "not_found_error", "model: no-such-model"),
    "413": (413, "request_too_large", "Request exceeds the maximum size"),
    "credit": (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    ),
    "spend": (429, "rate_limit_error", "You have reached your organization's spend limit"),
}
"""Faults that are an error of the API: HTTP status, type, message."""

FAULTS = [
    *ERRORS,
    "slow",  # answers after slow_s
    "cut",  # half of the answer, then the connection ends
    "hang up",  # no answer at all
    "garbage",  # 200, but no JSON
    "wrong json",  # 200, JSON, but no message
    "unreadable",  # a message whose text is no verdict
    "refusal",  # stop_reason refusal
    "expired",  # in a batch only
    "canceled",  # in a batch only
]


class StubAnthropic:
    """The server, in a thread of this process."""

    def __init__(
        self,
        verdict: Callable[[str], str] = lambda prompt: "3",
        fault: Callable[[str, int], str | None] = lambda prompt, n: None,
        *,
        latency_s: float = 0.0,
        slow_s: float = 1.0,
        retry_after: str = "0.05",
        polls_until_end: int = 1,
        key: str = KEY,
        port: int = 0,
    ) -> None:
        self.verdict, self.fault = verdict, fault
        self.latency_s, self.slow_s, self.retry_after = latency_s, slow_s, retry_after
        self.polls_until_end = polls_until_end
        self.key = key
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()  # prompt to requests
        self.answered: Counter[str] = Counter()  # prompt to complete answers
        self.faults: Counter[str] = Counter()
        self.asked_after_verdict = 0  # requests whose prompt had a verdict or a refusal
        self._has_verdict: set[str] = set()
        self.service_s = 0.0  # seconds from a request to its answer, summed
        self.in_flight = self.most_in_flight = 0
        self.times: list[float] = []  # when each request came
        self.refused_bodies: list[str] = []
        self.batches: dict[str, dict] = {}
        self.created = 0
        self.create_faults: list[str] = []  # taken from the front by POST /v1/messages/batches
        self.results_faults: list[str] = []  # the same by GET .../results
        self.on_answer: Callable[[int], None] = lambda n: None
        stub = self

        class Handler(_Handler):
            server_stub = stub

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # clients that are killed are no news
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> StubAnthropic:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def next_fault(self, prompt: str) -> str | None:
        """Count a request for this prompt; the fault that the script has for it."""
        with self.lock:
            n = self.asked[prompt]
            self.asked[prompt] += 1
            self.asked_after_verdict += prompt in self._has_verdict
            fault = self.fault(prompt, n)
            if fault:
                assert fault in FAULTS, fault
                self.faults[fault] += 1
            return fault

    def count_answer(self, prompt: str, verdict: bool) -> int:
        """Count a complete answer; how many there are now."""
        with self.lock:
            self.answered[prompt] += 1
            if verdict:
                self._has_verdict.add(prompt)
            return sum(self.answered.values())

    def message(self, prompt: str, model: str, fault: str | None) -> dict:
        """A message of the API."""
        text, stop, details = self.verdict(prompt), "end_turn", None
        if fault == "unreadable":
            text, stop = "I would say that it is about a 3, but", "max_tokens"
        elif fault == "refusal":
            text, stop = "", "refusal"
            details = {"type": "refusal", "category": "bio", "explanation": None}
        return {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": text}] if text else [],
            "stop_reason": stop,
            "stop_sequence": None,
            "stop_details": details,
            "usage": {
                "input_tokens": max(1, len(prompt.encode()) // 4),
                "output_tokens": max(1, len(text) // 4),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        }

    def end_batches(self) -> None:
        """End every batch that is in progress at the next look at it."""
        for batch in self.batches.values():
            batch["polls_left"] = 0

    def stats(self) -> dict:
        """The counts, for another process."""
        return {
            "requests": sum(self.asked.values()),
            "faults": dict(self.faults),
            "asked_after_verdict": self.asked_after_verdict,
            "most_in_flight": self.most_in_flight,
            "service_s": self.service_s,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_stub: StubAnthropic

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        if not self._is_allowed():
            return
        if self.path == "/v1/messages":
            self._answer_message(body)
        elif self.path == "/v1/messages/batches":
            self._create_batch(body)
        elif match := re.fullmatch(r"/v1/messages/batches/(\w+)/cancel", self.path):
            batch = self.server_stub.batches[match[1]]
            batch["canceled"] = True
            batch["polls_left"] = 0
            self._reply(200, self._batch_object(batch))
        else:
            self._error("404")

    def do_GET(self) -> None:
        stub = self.server_stub
        if self.path == "/stats":
            self._reply(200, stub.stats())
            return
        if not self._is_allowed():
            return
        if self.path.startswith("/v1/messages/batches?") or self.path == "/v1/messages/batches":
            listed = [self._batch_object(b) for b in reversed(stub.batches.values())]
            self._reply(200, {"data": listed, "has_more": False, "first_id": None, "last_id": None})
        elif match := re.fullmatch(r"/v1/messages/batches/(\w+)(/results)?", self.path):
            batch = stub.batches.get(match[1])
            if batch is None:
                self._error("404")
            elif match[2]:
                self._stream_results(batch)
            else:
                batch["polls_left"] -= 1
                self._reply(200, self._batch_object(batch))
        else:
            self._error("404")

    def _is_allowed(self) -> bool:
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        if (given or self.headers.get("x-api-key")) != self.server_stub.key:
            self._error("401")
            return False
        if not self.headers.get("anthropic-version"):
            self._error("400")
            return False
        return True

    def _refused(self, params: dict) -> str | None:
        """What the API would say to a request that it does not take."""
        if self.headers["anthropic-version"] >= "2026-10-21":
            for name in ("temperature", "top_p", "top_k"):
                if name in params:
                    return f"{name}: this parameter is not supported"
        if not isinstance(params.get("max_tokens"), int) or not params.get("model"):
            return "max_tokens, model: field required"
        messages = params.get("messages") or []
        if not messages or messages[-1].get("role") != "user":
            return "messages: must end with a user turn"
        return None

    def _answer_message(self, body: dict) -> None:
        stub = self.server_stub
        if refused := self._refused(body):
            stub.refused_bodies.append(refused)
            self._reply(400, _error_body("invalid_request_error", refused))
            return
        prompt = body["messages"][0]["content"]
        fault = stub.next_fault(prompt)
        seconds = stub.slow_s if fault == "slow" else stub.latency_s
        start = time.monotonic()
        with stub.lock:
            stub.times.append(start)
            stub.in_flight += 1
            stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
        time.sleep(seconds)
        with stub.lock:
            stub.in_flight -= 1
            stub.service_s += time.monotonic() - start
        if fault in ERRORS:
            self._error(fault)
        elif fault == "hang up":
            self._hang_up()
        elif fault == "garbage":
            self._write(200, "text/html", b"<html><body>Bad gateway</body></html>")
        elif fault == "wrong json":
            self._reply(200, {"object": "chat.completion", "choices": [{"text": "3"}]})
        elif fault == "cut":
            content = json.dumps(stub.message(prompt, body["model"], None)).encode()
            self._write(200, "application/json", content, cut=len(content) // 2)
        else:
            n = stub.count_answer(prompt, fault != "unreadable")
            self._reply(200, stub.message(prompt, body["model"], fault))
            stub.on_answer(n)

    def _create_batch(self, body: dict) -> None:
        stub = self.server_stub
        fault = stub.create_faults.pop(0) if stub.create_faults else None
        if fault in ERRORS:
            self._error(fault)
            return
        ids = [request["custom_id"] for request in body["requests"]]
        if len(set(ids)) < len(ids) or not all(
            re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in ids
        ):
            self._reply(
                400, _error_body("invalid_request_error", "custom_id: not unique or not valid")
            )
            return
        batch = {
            "id": f"msgbatch_{uuid.uuid4().hex}",
            "requests": body["requests"],
            "polls_left": stub.polls_until_end,
            "canceled": False,
            "created": datetime.now(UTC),
            "results": None,
        }
        stub.batches[batch["id"]] = batch
        stub.created += 1
        if fault == "hang up":  # made, but nobody is told
            self._hang_up()
            return
        self._reply(200, self._batch_object(batch))

    def _batch_object(self, batch: dict) -> dict:
        stub = self.server_stub
        ended = batch["polls_left"] <= 0
        if ended and batch["results"] is None:
            batch["results"] = [self._row(batch, request) for request in batch["requests"]]
        kinds = Counter(row["result"]["type"] for row in batch["results"] or [])
        counts = {kind: kinds[kind] for kind in ("succeeded", "errored", "canceled", "expired")}
        made = batch["created"].isoformat()
        url = f"{stub.url}/v1/messages/batches/{batch['id']}/results"
        return {
            "id": batch["id"],
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {"processing": 0 if ended else len(batch["requests"]), **counts},
            "created_at": made,
            "expires_at": (batch["created"] + timedelta(days=1)).isoformat(),
            "ended_at": made if ended else None,
            "archived_at": None,
            "cancel_initiated_at": made if batch["canceled"] else None,
            "results_url": url if ended else None,
        }

    def _row(self, batch: dict, request: dict) -> dict:
        stub = self.server_stub
        params = request["params"]
        prompt = params["messages"][0]["content"]
        fault = "canceled" if batch["canceled"] else stub.next_fault(prompt)
        if refused := self._refused(params):
            result = {"type": "errored", "error": _error_body("invalid_request_error", refused)}
        elif fault in ERRORS:
            _, kind, said = ERRORS[fault]
            result = {"type": "errored", "error": _error_body(kind, said)}
        elif fault in ("expired", "canceled"):
            result = {"type": fault}
        elif fault == "wrong json":
            result = {"type": "succeeded", "message": {"object": "chat.completion"}}
        else:
            stub.count_answer(prompt, fault != "unreadable")
            message = stub.message(prompt, params["model"], fault)
            result = {"type": "succeeded", "message": message}
        return {"custom_id": request["custom_id"], "result": result}

    def _stream_results(self, batch: dict) -> None:
        stub = self.server_stub
        rows = batch["results"][::-1]  # the API promises no order
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        fault = stub.results_faults.pop(0) if stub.results_faults else None
        cut = len(content) // 2 if fault == "cut" else None
        self._write(200, "application/x-jsonl", content, cut=cut)

    def _error(self, fault: str) -> None:
        status, kind, said = ERRORS[fault]
        headers = {}
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        body = _error_body(kind, said.replace("{key}", given))  # what the real one never does
        if fault in ("429", "529"):
            headers["retry-after"] = self.server_stub.retry_after
        if fault == "spend":
            body["error"]["details"] = {"error_code": "enforced_spend_limit_reached"}
        self._reply(status, body, headers)

    def _reply(self, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
        self._write(status, "application/json", json.dumps(body).encode(), headers)

    def _write(
        self,
        status: int,
        kind: str,
        content: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        head = {
            "content-type": kind,
            "content-length": str(len(content)),
            "request-id": f"req_{uuid.uuid4().hex}",
            **(headers or {}),
        }
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in head.items())]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content[:cut])  # in one packet
        if cut is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()


def _error_body(kind: str, message: str) -> dict:
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": f"req_{uuid.uuid4().hex}",
    }


def mixed_faults(share: float) -> Callable[[str, int], str | None]:
    """Faults of all kinds for a share of the prompts, each at its first request; by a hash."""
    kinds = ["429", "529", "500", "503", "slow", "cut", "hang up", "garbage", "wrong json"]
    kinds += ["unreadable", "refusal"]

    def fault(prompt: str, n: int) -> str | None:
        number = int.from_bytes(uuid.uuid5(uuid.NAMESPACE_URL, prompt).bytes[:6])
        return kinds[number % len(kinds)] if n == 0 and number % 1000 < 1000 * share else None

    return fault


if __name__ == "__main__":
    latency, share, slow = map(float, sys.argv[1:4])
    with StubAnthropic(
        verdict=lambda prompt: str(len(prompt) % 4),
        fault=mixed_faults(share),
        latency_s=latency,
        slow_s=slow,
        retry_after="1",
    ) as served:
        print(served.url, flush=True)
        threading.Event().wait()
