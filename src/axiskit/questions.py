"""The questions that every role answers: JSON Lines of ``{"question", "id"}`` (and more keys)."""

from __future__ import annotations

import json
from pathlib import Path

from axiskit.errors import QuestionError


def load_questions(path: str | Path, count: int | None = None) -> list[str]:
    """Read the first ``count`` questions (all, when None).

    Raises:
        QuestionError: The file is missing or malformed (the line is named), a question stands
            twice, or there are fewer than ``count``.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"{path}: cannot be read (questions.file): {error}") from None
    questions: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)["question"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise QuestionError(
                f'{path}: line {number}: found {line[:60]!r}, {{"question": ..., "id": ...}} needed'
            ) from None
        if not isinstance(question, str) or not question.strip():
            raise QuestionError(f"{path}: line {number}: question: found {question!r}, text needed")
        if question in questions:
            raise QuestionError(
                f"{path}: line {number}: same question as line {questions[question]}; remove one"
            )
        questions[question] = number
    if len(questions) < (count or 1):
        raise QuestionError(
            f"{path}: {len(questions)} questions, {count or 1} needed (questions.count); "
            "add questions or lower it"
        )
    return list(questions)[:count]
