"""A conversation with one model, as ``axiskit chat`` holds it: ask, measure, save.

Light at import, as the command line is: each method imports what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from axiskit.errors import TranscriptError
from axiskit.runs import Run
from axiskit.terminal import bar, note

if TYPE_CHECKING:
    from axiskit.interventions import Intervention
    from axiskit.templates import Messages


@dataclass(frozen=True)
class Reader:
    """A model, unchanged, that reads conversations along the axis."""

    run: Run
    layer: int
    model: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        """The model's id or folder."""
        return str(self.model.name_or_path)

    def read(self, messages: Messages, where: str) -> list[dict[str, Any]]:
        """``turn`` (from 0), ``n_tokens`` and ``projection`` of each assistant turn."""
        from axiskit.trajectories import project_turns

        rows = project_turns(
            self.model,
            self.tokenizer,
            messages,
            self.run.axis,
            self.run.layers,
            self.layer,
            where=where,
            **self.run.chat_template_kwargs,
        )
        return [
            {
                "turn": row["turn"],
                "n_tokens": row["n_tokens"],
                "projection": row[f"layer_{self.layer}"],
            }
            for row in rows
        ]


@dataclass
class Dialogue:
    """A conversation with a model that is, perhaps, intervened on."""

    reader: Reader
    intervention: Intervention | None
    system: str | None
    sampling: dict[str, Any]
    messages: Messages = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system:
            self.messages = [{"role": "system", "content": self.system}]

    def ask(
        self, question: str, seed: int, on_text: Callable[[str], None] | None
    ) -> dict[str, Any]:
        """Answer a question and measure the answer; a failure leaves the conversation as it was."""
        from axiskit.chat import generate_response

        reader = self.reader
        messages = [*self.messages, {"role": "user", "content": question}]
        steering = self.intervention.on(reader.model) if self.intervention else None
        with steering or nullcontext():
            response = generate_response(
                reader.model,
                reader.tokenizer,
                messages,
                **self.sampling,
                seed=seed,
                chat_template_kwargs=reader.run.chat_template_kwargs,
                on_text=on_text,
            )
        messages.append({"role": "assistant", "content": response})
        measured = reader.read(messages, "the conversation")[-1]
        turn = {
            "turn": measured["turn"],
            "prompt": question,
            "response": response,
            "n_tokens": measured["n_tokens"],
            "projection": measured["projection"],
            "stats": asdict(steering.stats) if steering else None,
            "seed": seed,
        }
        self.messages = messages
        self.turns.append(turn)
        return turn

    def seed_of_next(self, seed: int) -> int:
        """Each turn has a seed of its own, that of the first is the one given."""
        from axiskit.rollouts import digest

        return int(digest(seed, len(self.turns))[:16], 16) >> 1 if self.turns else seed

    def record(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """All that is known of a turn, for machines."""
        run = self.reader.run
        return {
            "model": self.reader.name,
            "run": str(run.folder),
            "layer": self.reader.layer,
            "default_band": run.default_band,
            "intervention": self.intervention.description if self.intervention else None,
            "system": self.system,
            **self.sampling,
            **turn,
        }

    def measured(self, turn: Mapping[str, Any]) -> Text:
        """All that is known of a turn, for people."""
        band, values = self.reader.run.default_band, [t["projection"] for t in self.turns]
        text = Text().append(f"[turn {turn['turn'] + 1}: ", "dim")
        if turn["projection"] is None:
            text.append("empty answer, no projection", "dim")
        else:
            text.append(f"projection {turn['projection']:.2f} ", "dim")
            text.append_text(bar(turn["projection"], values, band))
            if band and turn["projection"] < band[0]:
                text.append(" below the default's band", "dim")
        if self.intervention:
            stats = turn["stats"]
            text.append(
                f"]\n[{self.intervention}: changed {stats['fired']:.0%} of tokens x layers, by "
                f"{stats['mean_relative_shift']:.1%} of their norm in mean",
                "dim",
            )
        return text.append("]", "dim")

    def save(self, path: str) -> None:
        """Write a transcript in the published shape."""
        from axiskit.artifacts import write_text

        if not path:
            raise TranscriptError("/save: no file named; /save FILE")
        if not self.turns:
            raise TranscriptError(f"{path}: not written, nothing has been said yet")
        content = {
            "model": self.reader.name,
            "intervention": self.intervention.description if self.intervention else None,
            "conversation": self.messages,
        }
        target = Path(path).expanduser()
        write_text(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        note(f"saved {len(self.turns)} turns in {target}")
