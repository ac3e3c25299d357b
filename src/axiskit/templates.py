"""Chat templates: from messages to the text a model reads, and where the responses stand in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from axiskit.errors import TemplateError

Messages = list[dict[str, str]]

_SENTINEL = "axiskit-{}-sentinel"
_THINKING = re.compile(r"(?:<think>.*?)?</think>|<think>.*\Z", re.DOTALL)
_TODAY = datetime(2025, 1, 1)  # templates that print the date: the same prompt on every day


def chat_messages(tokenizer: Any, system_prompt: str, question: str, **kwargs: Any) -> Messages:
    """System prompt and question as messages; ``""`` sends no system message.

    A template without a system role gets the prompt in front of the question.
    """
    if not system_prompt:
        return [{"role": "user", "content": question}]
    if has_system_role(tokenizer, **kwargs):
        return [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": question},
        ]
    return [{"role": "user", "content": f"{system_prompt}\n\n{question}"}]


def fold_system(tokenizer: Any, messages: Messages, **kwargs: Any) -> Messages:
    """A conversation as the template takes it: a system message it has no room for is moved."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, question = messages[0]["content"], messages[1]["content"]
    return [*chat_messages(tokenizer, system, question, **kwargs), *messages[2:]]


def has_system_role(tokenizer: Any, **kwargs: Any) -> bool:
    """Whether the chat template shows a system message to the model."""
    probe = [
        {"role": "system", "content": _SENTINEL.format("system")},
        {"role": "user", "content": "?"},
    ]
    try:
        return _SENTINEL.format("system") in _render(tokenizer, probe, False, kwargs)
    except TemplateError:
        return False


def render_prompt(tokenizer: Any, messages: Messages, **kwargs: Any) -> str:
    """The text after which the model writes its response.

    Raises:
        TemplateError: The template cannot render these messages, or leaves thinking switched on.
    """
    text = _render(tokenizer, messages, True, kwargs)
    if text.rstrip().endswith("<think>"):
        raise TemplateError(
            "the chat template opens a thinking block before the response; responses without "
            "thinking are needed: switch it off (model.chat_template_kwargs, for example "
            "{enable_thinking: false})"
        )
    return text


def render_conversation(
    tokenizer: Any, messages: Messages, **kwargs: Any
) -> tuple[str, list[tuple[int, int]]]:
    """A whole conversation as the model reads it, and the span of each response in it.

    The template is rendered once with markers in place of the responses. What stands between the
    markers is the template's own text; the true rendering must be that text with the responses in
    it, so a response that occurs in a question too, or in the template, is never mistaken.

    Returns:
        The text, and one (start, end) in characters for each assistant message, in order, without
        template text, thinking blocks and outer white space; start == end for an empty response.

    Raises:
        TemplateError: The template cannot render the messages or rewrites a response.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    marked = [dict(message) for message in messages]
    for i in turns:
        marked[i]["content"] = _SENTINEL.format(i)
    skeleton = _render(tokenizer, marked, False, kwargs)
    text = _render(tokenizer, messages, False, kwargs)
    literals = re.split("|".join(_SENTINEL.format(i) for i in turns), skeleton)
    end = len(text) - len(literals[-1])
    if len(literals) != len(turns) + 1 or not text.endswith(literals[-1]):
        raise _rewritten(turns[-1])
    spans: list[tuple[int, int]] = []
    for i, before in zip(reversed(turns), reversed(literals[:-1]), strict=True):
        content = messages[i]["content"]
        answer = content[slice(*answer_span(content))]
        for candidate in (content, content.strip(), answer):
            if text[:end].endswith(before + candidate):
                break
        else:
            raise _rewritten(i)
        start = text.rindex(answer, end - len(candidate), end)
        spans.append((start, start + len(answer)))
        end -= len(before) + len(candidate)
    if end != 0:
        raise _rewritten(turns[0])
    return text, spans[::-1]


def answer_span(response: str) -> tuple[int, int]:
    """Start and end of a response without its thinking block and outer white space.

    >>> answer_span("<think>hm</think> Yes. ")
    (18, 22)
    """
    start = max((match.end() for match in _THINKING.finditer(response)), default=0)
    answer = response[start:]
    start += len(answer) - len(answer.lstrip())
    return start, start + len(answer.strip())


def check_template(tokenizer: Any, **kwargs: Any) -> None:
    """Try the template on a short exchange, before any weights are loaded.

    Raises:
        TemplateError: There is none, it fails, leaves thinking on, or rewrites responses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TemplateError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, a chat model is needed "
            "(model.path); choose an instruction-tuned model or add chat_template.jinja to it"
        )
    messages = chat_messages(tokenizer, "Be brief.", "Which one?", **kwargs)
    prompt = render_prompt(tokenizer, messages, **kwargs)
    text, [(start, _)] = _probe(tokenizer, messages, **kwargs)
    if text[:start].rstrip() != prompt.rstrip():
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template writes {text[:start][-40:]!r} before a "
            f"response that it reads and {prompt[-40:]!r} before one to be written, the same is "
            "needed; most often thinking has to be switched off (model.chat_template_kwargs, for "
            "example {enable_thinking: false})"
        )


def end_of_turn(tokenizer: Any, **kwargs: Any) -> int | None:
    """The special token that the template puts after a response, if it does."""
    text, [(_, end)] = _probe(tokenizer, [{"role": "user", "content": "Which one?"}], **kwargs)
    after = tokenizer(text[end:], add_special_tokens=False).input_ids
    return after[0] if after and after[0] in tokenizer.all_special_ids else None


def _probe(tokenizer: Any, messages: Messages, **kwargs: Any) -> tuple[str, list[tuple[int, int]]]:
    response = {"role": "assistant", "content": "This one, *of course*."}
    return render_conversation(tokenizer, [*messages, response], **kwargs)


def template_hash(tokenizer: Any) -> str:
    """sha256 (hex) of the chat template."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def _render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    kwargs: Mapping[str, Any],
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **{"strftime_now": _TODAY.strftime, **kwargs},
        )
    except Exception as error:  # a template may raise anything, jinja2's errors among it
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template fails: {error}; check it and "
            "model.chat_template_kwargs"
        ) from error
    return str(text)


def _rewritten(turn: int) -> TemplateError:
    return TemplateError(
        f"message {turn}: the chat template rewrites the response, so that its tokens cannot be "
        "found; use a template that keeps responses as they are"
    )
