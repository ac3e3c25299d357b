"""What steering and capping do to the texts of a model: a figure, and two answers side by side.

    .venv/bin/python benchmarks/steering_effect.py results/smollm2-135m-instruct

Needs a finished run. Steers with coefficients -2 to 2 of the axis at the target layer; every answer
is then read by the unchanged model, so that the text is measured and not the shift itself. Draws
docs/images/steering.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from axiskit import (
    ActivationSteering,
    build_capping_steerer,
    extract_response_activations,
    generate_response,
    load_axis,
    load_capping_config,
    load_model,
    project,
)
from axiskit.chat import conversation_prompt
from axiskit.generation import sample_responses
from axiskit.questions import load_questions
from axiskit.roles import load_role

COEFFICIENTS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
N_QUESTIONS, N_TOKENS = 24, 48
EXPERIMENT = "layers_14:18-p0.25"
PERSONAS = ("oracle", "pirate", "vampire")


def main(folder: Path) -> None:
    """Measure, print and draw."""
    model, tokenizer = load_model(str(folder / "model"), dtype="float32")
    axis = load_axis(folder / "axis.pt")
    layer = len(axis) // 2
    questions = load_questions("resources/questions.jsonl", N_QUESTIONS)

    def projections(talks: list[list[dict[str, str]]]) -> np.ndarray[Any, Any]:
        activations = extract_response_activations(model, tokenizer, talks)
        return np.array([float(project(a, axis, layer)) for a in activations])

    neutral = [[{"role": "user", "content": question}] for question in questions]
    tokens = [
        tokenizer(conversation_prompt(tokenizer, talk), add_special_tokens=False).input_ids
        for talk in neutral
    ]
    means, errors = [], []
    print("coefficient  mean projection of the answers, standard error")
    for coefficient in COEFFICIENTS:
        with ActivationSteering(model, axis[layer], layer_indices=layer, coefficients=coefficient):
            rows = sample_responses(
                model,
                tokenizer,
                tokens,
                seeds=list(range(len(tokens))),
                names=questions,
                temperature=0.7,
                top_p=0.9,
                max_new_tokens=N_TOKENS,
            )
        answered = [
            [*talk, {"role": "assistant", "content": row["response"]}]
            for talk, row in zip(neutral, rows, strict=True)
            if row["response"].strip()
        ]
        values = projections(answered)
        means.append(values.mean())
        errors.append(values.std(ddof=1) / len(values) ** 0.5)
        print(f"{coefficient:11.1f}  {means[-1]:6.2f} +- {errors[-1]:.2f}")
    print("rises with every coefficient:", bool(np.all(np.diff(means) > 0)))
    draw(means, errors, layer)

    config = load_capping_config(folder / "capping_config.pt", axis)
    for persona in PERSONAS:
        role = load_role(f"resources/roles/{persona}.yaml")
        talk = [
            {"role": "system", "content": role.instructions[0]},
            {"role": "user", "content": questions[0]},
        ]
        print(f"\n{persona}: {questions[0]}")
        for name in ("unsteered", EXPERIMENT):
            steering = None if name == "unsteered" else build_capping_steerer(model, config, name)
            if steering is None:
                answer = generate_response(model, tokenizer, talk, 80, seed=0)
            else:
                with steering:
                    answer = generate_response(model, tokenizer, talk, 80, seed=0)
            [value] = projections([[*talk, {"role": "assistant", "content": answer}]])
            fired = f", fired on {steering.stats.fired:.0%}" if steering else ""
            print(f"[{name}: projection {value:.2f}{fired}]\n{answer}")


def draw(means: list[float], errors: list[float], layer: int) -> None:
    """Coefficient against projection."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(COEFFICIENTS, means, yerr=errors, marker="o", ms=4, color="#4477aa", capsize=2)
    axes.set_xlabel(f"coefficient of the axis added after layer {layer}")
    axes.set_ylabel("mean projection of the answers")
    axes.grid(alpha=0.25)
    figure.savefig("docs/images/steering.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/smollm2-135m-instruct"))
