"""Conversations as files: scripts of user turns to be answered, and recorded transcripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from axiskit.errors import TranscriptError
from axiskit.picking import pick_files
from axiskit.templates import Messages


class Script(BaseModel):
    """The user's side of a conversation.

    Attributes:
        name: The file's name without its ending.
        domain: What it is about, e.g. ``coding``.
        description: What the user does over the conversation.
        turns: The user's messages, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    domain: str
    description: str
    turns: list[str] = Field(min_length=1)


class Transcript(BaseModel):
    """A recorded conversation, in the published shape; other keys are ignored.

    Attributes:
        model: Who answered, if the file says so.
        conversation: Messages with ``role`` and ``content``.
        system_prompt: Stands before the conversation if that has no system message of its own.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str | None = None
    conversation: list[dict[str, str]] = Field(min_length=2)
    system_prompt: str | None = None

    @property
    def messages(self) -> Messages:
        """The conversation with its system prompt in front."""
        if not self.system_prompt or self.conversation[0]["role"] == "system":
            return self.conversation
        return [{"role": "system", "content": self.system_prompt}, *self.conversation]


def find_scripts(folder: str | Path, include: Sequence[str] | str = "all") -> dict[str, Path]:
    """Map name to file for the included scripts, sorted by name; none for ``[]``.

    Raises:
        TranscriptError: The folder is missing or empty, or an included script has no file.
    """
    if not include:
        return {}
    return pick_files(
        folder, include, kind="conversation", key="conversations", error=TranscriptError
    )


def load_script(path: str | Path) -> Script:
    """Read a script of user turns.

    Raises:
        TranscriptError: The file is missing, malformed or lacks something; the key is named.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        script = Script.model_validate(data)
    except FileNotFoundError:
        raise TranscriptError(f"{path}: no such file (conversations.dir)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TranscriptError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise _first_problem(path, error) from None
    if script.name != path.stem:
        raise TranscriptError(
            f"{path}: name: found '{script.name}', the file's name needs '{path.stem}'"
        )
    if not all(turn.strip() for turn in script.turns):
        raise TranscriptError(f"{path}: turns: one is empty, text needed")
    return script


def load_transcript(path: str | Path) -> Transcript:
    """Read a transcript: ``{"conversation": [{"role", "content"}, ...]}`` or a list of messages.

    Raises:
        TranscriptError: The file is missing or malformed, no assistant message is in it, or the
            roles do not alternate.
    """
    path = Path(path)
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        transcript = Transcript.model_validate(
            {"conversation": data} if isinstance(data, list) else data
        )
    except FileNotFoundError:
        raise TranscriptError(f"{path}: no such transcript") from None
    except OSError as error:
        raise TranscriptError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, ValidationError):
            raise _first_problem(path, error) from None
        raise TranscriptError(f"{path}: cannot be parsed as JSON: {error}") from None
    try:
        check_messages(transcript.messages)
    except TranscriptError as error:
        raise TranscriptError(f"{path}: {error}") from None
    return transcript


def check_messages(messages: Messages) -> None:
    """See that messages alternate: an optional system message, then user and assistant in turns.

    Raises:
        TranscriptError: They do not, or no assistant message is among them.
    """
    for i, message in enumerate(messages):
        if {"role", "content"} - message.keys():
            raise TranscriptError(f"message {i}: found {sorted(message)}, role and content needed")
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for i, message in enumerate(turns):
        needed = "assistant" if i % 2 else "user"
        if message["role"] != needed:
            raise TranscriptError(
                f"message {i + len(messages) - len(turns)}: found role '{message['role']}', "
                f"'{needed}' needed: user and assistant take turns"
            )
    if len(turns) < 2:
        raise TranscriptError("no assistant message found, at least one needed")


def first_crossing(projections: Sequence[float | None], floor: float) -> int | None:
    """The first turn whose projection lies under ``floor``; None if none does.

    >>> first_crossing([3.0, 2.0, None, -1.0, 2.0], 0.0)
    3
    """
    return next((i for i, p in enumerate(projections) if p is not None and p < floor), None)


def _first_problem(path: Path, error: ValidationError) -> TranscriptError:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return TranscriptError(f"{path}: {key or 'file'}: {problem['msg']}")
