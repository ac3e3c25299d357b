"""Answers in a conversation: one at a time, streamed, or for several conversations at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch

from axiskit.generation import Sampling, sample_responses
from axiskit.models import check_length
from axiskit.templates import Messages, fold_system, render_prompt


def generate_response(
    model: Any,
    tokenizer: Any,
    conversation: Messages,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.9,
    do_sample: bool = True,
    *,
    seed: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Answer the last message of a conversation.

    Args:
        model: As :func:`axiskit.load_model` gives it.
        tokenizer: Likewise.
        conversation: Messages with ``role`` and ``content``; the last is the user's. A system
            message that the chat template has no room for goes in front of the first question.
        max_new_tokens: Longest answer, in tokens.
        temperature: Divides the logits.
        top_p: Share of probability that is sampled from.
        do_sample: False takes the most likely token each time.
        seed: The same seed gives the same answer; None draws one.
        chat_template_kwargs: Passed to the chat template, e.g. ``{"enable_thinking": False}``.
        on_text: Called with each new piece of text as it comes.

    Raises:
        TranscriptError: Conversation and longest answer are more than the model reads.
        TemplateError: The template cannot render the conversation, or leaves thinking on.
        NonFiniteError: The model's logits are not numbers.
    """
    sampling: Sampling = {
        "temperature": temperature if do_sample else 0.0,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    prompt = conversation_prompt(tokenizer, conversation, **(chat_template_kwargs or {}))
    tokens = tokenizer(prompt, add_special_tokens=False).input_ids
    check_length(model, len(tokens) + max_new_tokens, "conversation and answer")
    row = sample_responses(
        model,
        tokenizer,
        [tokens],
        seeds=[secrets.randbits(63) if seed is None else seed],
        names=["conversation"],
        streamer=_Streamer(tokenizer, on_text) if on_text else None,
        **sampling,
    )[0]
    return str(row["response"])


def conversation_prompt(tokenizer: Any, conversation: Messages, **kwargs: Any) -> str:
    """The text after which the model writes its next answer in a conversation."""
    return render_prompt(tokenizer, fold_system(tokenizer, conversation, **kwargs), **kwargs)


class _Streamer:
    """Hands new text on, a token at a time, in the way that transformers calls a streamer."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.prompt_is_next = True
        self.tokens: list[int] = []
        self.sent = 0

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        self.tokens += value.flatten().tolist()
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a sign of several bytes
            self._send(text)

    def end(self) -> None:
        self._send(self.tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _send(self, text: str) -> None:
        if len(text) > self.sent:
            self.on_text(text[self.sent :])
            self.sent = len(text)
