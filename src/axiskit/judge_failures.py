"""Why a request to a judge has no answer, and what is to be done about it."""

from __future__ import annotations

import contextlib
import email.utils
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

API_KEY = "ANTHROPIC_API_KEY"


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer.

    Attributes:
        action: ``wait`` (rate limit), ``slow`` (overload), ``retry`` (server error, timeout,
            dropped connection, garbled answer), ``invalid`` (this request is refused), ``account``
            (key, credit, permission: nothing will be answered), ``setup`` (wrong model or address).
        retry_after: Seconds to wait, as the server told.
        perhaps_paid: The server may have answered without our seeing it.
    """

    action: Literal["wait", "slow", "retry", "invalid", "account", "setup"]
    message: str
    retry_after: float | None = None
    perhaps_paid: bool = False


def without_key(text: str) -> str:
    """A server's words, in one line, cut, and without the key should it repeat it."""
    key = os.environ.get(API_KEY, "").strip()
    text = " ".join(text.split())
    return (text.replace(key, "[key]") if key else text)[:300]


def failure_of(error: Exception) -> Failure:
    """What an exception of the SDK means; one that it does not know is raised again."""
    import anthropic

    if isinstance(error, anthropic.APITimeoutError):
        return Failure("retry", "timeout", perhaps_paid=True)
    if isinstance(error, anthropic.APIConnectionError):
        dropped = "connection dropped" if _was_sent(error) else "no connection"
        return Failure("retry", dropped, perhaps_paid=_was_sent(error))
    if isinstance(error, anthropic.APIStatusError):
        return failure_of_status(
            error.status_code,
            error.type,
            error.error_code,
            error.api_message or error.message,
            retry_after(error.response.headers),
        )
    if isinstance(error, ValueError | anthropic.APIResponseValidationError):
        return Failure("retry", "the answer is no JSON", perhaps_paid=True)
    if type(error).__module__.startswith("httpx"):  # the connection broke while the body was read
        return Failure("retry", "connection dropped", perhaps_paid=True)
    raise error


def _was_sent(error: BaseException) -> bool:
    cause = error.__cause__
    return cause is None or "Connect" not in type(cause).__name__


def failure_of_status(
    status: int | None,
    kind: str | None,
    code: str | None,
    message: str,
    wait: float | None = None,
) -> Failure:
    """What an error of the API means, by HTTP status, ``error.type`` and its finer code.

    Args:
        status: None for a row of a batch.
        wait: Seconds of the header retry-after.

    Source: Anthropic, API reference, Errors and Rate limits. The code names the cause, if there is
    one; exhausted credit has none and is known by its words alone.
    """
    said = without_key(f"{status or ''} {kind or 'error'}: {message}".strip())
    words = message.lower()
    out_of_money = (
        (code or "").endswith(("spend_limit_reached", "billing_unavailable", "not_billable"))
        or "credit balance" in words
        or "usage limits" in words
    )
    if (
        out_of_money
        or status in (401, 402, 403)
        or kind in ("authentication_error", "billing_error", "permission_error")
    ):
        return Failure("account", said)
    if status == 429 or kind == "rate_limit_error":
        return Failure("wait", said, wait)
    if status == 529 or kind == "overloaded_error":
        return Failure("slow", said, wait)
    if status == 404 or kind == "not_found_error":
        return Failure("setup", said)
    if status in (408, 409) or kind in ("api_error", "timeout_error") or (status or 0) >= 500:
        return Failure("retry", said, wait)
    return Failure("invalid", said)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that headers tell to wait: retry-after-ms, or retry-after (seconds or a date)."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    told = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(told))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    return None
