"""A conversation held twice, by a model as it is and capped, with each turn's projection."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from axiskit.axis import axis_norm_per_layer, layer_position
from axiskit.capping import build_capping_steerer, capping_floors
from axiskit.chat import generate_response
from axiskit.errors import InterventionError, TranscriptError
from axiskit.rollouts import digest
from axiskit.runs import Run
from axiskit.steering import ActivationSteering, InterventionStats
from axiskit.templates import Messages
from axiskit.trajectories import project_turns
from axiskit.transcripts import load_transcript

SIDES = ("unsteered", "capped")

_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 256}


@dataclass(frozen=True)
class Settings:
    """What is done to the capped side, and how both answer.

    Attributes:
        experiment: Of the capping config; empty: no cap.
        floor_shift: Added to the experiment's floors, in lengths of the axis at each layer. One
            length is the distance from the mean role to the default.
        coefficient: Of the axis, added at the target layer; the cap acts after it.
        max_new_tokens: Longest answer.
        seed: Of the conversation; both sides of a turn get the same.
    """

    experiment: str = ""
    floor_shift: float = 0.0
    coefficient: float = 0.0
    max_new_tokens: int = 64
    seed: int = 0

    @property
    def applied(self) -> str:
        """What is done to the capped side, in words.

        >>> Settings("layers_14:18-p0.25", floor_shift=0.5, coefficient=-1).applied
        'capped by layers_14:18-p0.25, floors +0.5, steered -1'
        """
        cap = f"capped by {self.experiment}" if self.experiment else "no cap"
        if self.experiment and self.floor_shift:
            cap += f", floors {self.floor_shift:+g}"
        return cap + (f", steered {self.coefficient:+g}" if self.coefficient else "")

    def turn_seed(self, turn: int) -> int:
        """The seed of a turn's answers, by the number of turns before it."""
        return int(digest(self.seed, turn)[:16], 16) >> 1


@dataclass(frozen=True)
class Turn:
    """A question, both answers, and where the unchanged model places them on the axis.

    Attributes:
        question: To both sides.
        answers: One a side.
        projections: One a side; None for an empty answer.
        applied: What was done to the capped side.
        cap_stats: What the cap did; None: there was none.
    """

    question: str
    answers: Mapping[str, str]
    projections: Mapping[str, float | None]
    applied: str
    cap_stats: InterventionStats | None


@dataclass(frozen=True)
class Trajectory:
    """A loaded transcript: projection and text of each assistant turn."""

    name: str
    projections: Sequence[float | None]
    texts: Sequence[str]


@dataclass(frozen=True)
class Talk:
    """All that was said.

    Attributes:
        system_prompt: Empty: none.
        turns: Those that are complete.
        pending: The question that is being answered.
        answers: To it, so far.
        transcript: A loaded one.
    """

    system_prompt: str = ""
    turns: tuple[Turn, ...] = ()
    pending: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)
    transcript: Trajectory | None = None

    def messages(self, side: str) -> Messages:
        """One side's conversation without the system prompt, the pending turn at its end."""
        messages = []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answers[side]})
        if self.pending:
            messages.append({"role": "user", "content": self.pending})
        if side in self.answers:
            messages.append({"role": "assistant", "content": self.answers[side]})
        return messages


class Talker:
    """Answers and reads with one model, one thing at a time.

    Args:
        run: The axis and its caps.
        model: Its model.
        tokenizer: The model's.

    Attributes:
        sampling: Temperature, top_p and longest answer, as the run's rollouts had them.
    """

    def __init__(self, run: Run, model: Any, tokenizer: Any) -> None:
        self.run = run
        self.model = model
        self.tokenizer = tokenizer
        used = run.metadata.get("stages", {}).get("generate_responses", {})
        self.sampling = {key: used.get(key, value) for key, value in _SAMPLING.items()}
        self._lengths = dict(zip(run.layers, axis_norm_per_layer(run.axis).tolist(), strict=True))
        self._busy = threading.Lock()

    def answer(self, talk: Talk, question: str, settings: Settings) -> Iterator[Talk]:
        """Answer on both sides, first as the model is, then capped, with the same seed.

        Yields:
            The talk with the question pending, while answers grow; last, with one turn more.

        Raises:
            TranscriptError: The question is empty, or the conversation too long for the model.
            NonFiniteError: Logits or a projection are not numbers.
            InterventionError: The cap does not fit the model.
        """
        if not question.strip():
            raise TranscriptError("message: empty, text needed")
        prompt = talk.system_prompt.strip()
        system = [{"role": "system", "content": prompt}] if prompt else []
        asked = replace(talk, pending=question, answers={})
        sides = {side: [*system, *asked.messages(side)] for side in SIDES}
        cap = self._cap(settings)
        changes = [change for change in (self._steering(settings), cap) if change]
        seed = settings.turn_seed(len(talk.turns))
        answers: dict[str, str] = {}
        projections: dict[str, float | None] = {}
        yield asked
        for side, messages in sides.items():
            applied = changes if side == "capped" else []
            for text in self._stream(messages, applied, settings.max_new_tokens, seed):
                answers[side] = text
                yield replace(asked, answers=dict(answers))
            read = self._project([*messages, {"role": "assistant", "content": answers[side]}])
            projections[side] = read[-1]
        stats = cap.stats if cap else None
        turn = Turn(question, answers, projections, settings.applied, stats)
        yield replace(talk, turns=(*talk.turns, turn))

    def read(self, talk: Talk, path: str | Path) -> Talk:
        """Load a transcript and project its assistant turns.

        Raises:
            TranscriptError: It is malformed, or too long for the model.
            NonFiniteError: A projection is not a number.
        """
        messages = load_transcript(path).messages
        texts = [m["content"] for m in messages if m["role"] == "assistant"]
        trajectory = Trajectory(Path(path).stem, self._project(messages), texts)
        return replace(talk, transcript=trajectory)

    def floor(self, settings: Settings) -> float | None:
        """The cap's floor at the target layer; None where it does not cap that layer."""
        if not settings.experiment or self.run.capping is None:
            return None
        layer = self.run.target_layer
        floor = capping_floors(self.run.capping, settings.experiment).get(layer)
        return None if floor is None else floor + settings.floor_shift * self._lengths[layer]

    def _cap(self, settings: Settings) -> ActivationSteering | None:
        """The chosen experiment with its floors shifted."""
        if not settings.experiment:
            return None
        if self.run.capping is None:
            raise InterventionError(
                f"experiment '{settings.experiment}': the run in {self.run.folder} has no "
                "capping_config.pt"
            )
        lower = {  # of caps, which are ceilings along vectors that point away from the Assistant
            name: settings.floor_shift * self._lengths[vector["layer"]]
            for name, vector in self.run.capping["vectors"].items()
        }
        experiments = [
            {
                "id": experiment["id"],
                "interventions": [
                    {"vector": entry["vector"], "cap": entry["cap"] - lower[entry["vector"]]}
                    for entry in experiment["interventions"]
                    if "cap" in entry
                ],
            }
            for experiment in self.run.capping["experiments"]
        ]
        config = {**self.run.capping, "experiments": experiments}
        return build_capping_steerer(self.model, config, settings.experiment)

    def _steering(self, settings: Settings) -> ActivationSteering | None:
        if not settings.coefficient:
            return None
        layer = self.run.target_layer
        return ActivationSteering(
            self.model,
            self.run.axis[layer_position(self.run.layers, layer)],
            coefficients=settings.coefficient,
            layer_indices=layer,
        )

    def _stream(
        self,
        messages: Messages,
        interventions: Sequence[ActivationSteering],
        max_new_tokens: int,
        seed: int,
    ) -> Iterator[str]:
        """The answer as it grows, written in a thread; closing the iterator stops the model."""
        pieces: list[str] = []
        fresh, stopped = threading.Event(), threading.Event()
        answer: Future[str] = Future()
        answer.add_done_callback(lambda _: fresh.set())

        def on_text(piece: str) -> None:
            if stopped.is_set():
                raise _Stopped
            pieces.append(piece)
            fresh.set()

        def work() -> None:
            try:
                with self._busy, ExitStack() as active:
                    for intervention in interventions:
                        active.enter_context(intervention)
                    text = generate_response(
                        self.model,
                        self.tokenizer,
                        messages,
                        **self.sampling | {"max_new_tokens": max_new_tokens},
                        seed=seed,
                        chat_template_kwargs=self.run.chat_template_kwargs,
                        on_text=on_text,
                    )
                answer.set_result(text)
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while not answer.done():
                fresh.wait()
                fresh.clear()
                yield "".join(pieces)
        finally:
            stopped.set()
        yield answer.result()

    def _project(self, messages: Messages) -> list[float | None]:
        """The projection of each assistant turn at the target layer."""
        layer = self.run.target_layer
        with self._busy:
            turns = project_turns(
                *(self.model, self.tokenizer, messages),
                *(self.run.axis, self.run.layers, layer),
                **self.run.chat_template_kwargs,
            )
        return [turn[f"layer_{layer}"] for turn in turns]


class _Stopped(Exception):  # noqa: N818 (no error: somebody pressed stop)
    """Leaves an answer that nobody waits for."""
