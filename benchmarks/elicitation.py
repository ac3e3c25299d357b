"""How well the instructions elicit their roles from a model, by the likelihood judge.

    .venv/bin/python benchmarks/elicitation.py results/smollm2-135m-instruct/model

Needs a model folder. 40 roles of all groups answer four questions under each of their five
instructions; every answer's likelihood ratio, nats per token, says what trace the instruction left
(docs/method.md). Prints tables by group, form of instruction, role and instruction, weakest first,
and the texts of the weakest, to be read: the numbers are a proxy. Takes about half an hour of one
core. Journals stay in the output folder, so the next call computes only what is new: instructions
that were rewritten, say. docs/instrument.md tells what was found.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from axiskit.artifacts import read_table
from axiskit.generation import generate_responses
from axiskit.judging import judge_responses
from axiskit.roles import Role, load_roles
from axiskit.rollouts import digest

ROLES, QUESTIONS = Path("resources/roles"), Path("resources/questions.jsonl")
N_ROLES, N_INSTRUCTIONS, N_TOKENS = 40, 5, 48
FORMS = ("who you are", "how you speak", "what you value", "a situation", "a manner")


def sample(roles: Iterable[Role], n: int) -> list[str]:
    """Names of ``n`` roles: two of each group, the rest in proportion to the groups' sizes.

    Within a group those first by a hash of their name, so that none is picked by hand.
    """
    groups: dict[str, list[str]] = {}
    for role in sorted(roles, key=lambda role: digest(role.name)):
        if role.kind == "role":
            groups.setdefault(role.group, []).append(role.name)
    taken = dict.fromkeys(sorted(groups), 2)
    while sum(taken.values()) < n:
        taken[max(taken, key=lambda group: len(groups[group]) / (taken[group] + 1))] += 1
    return sorted(name for group, count in taken.items() for name in groups[group][:count])


def measure(model: str, names: list[str], n_questions: int, out: Path) -> pd.DataFrame:
    """Answer and judge; one row a response, with its ratio (nats per token) and score."""
    settings = {
        "shard": "elicitation",
        "display_name": "model",
        "model_path": model,
        "revision": None,
        "dtype": "float32",
        "chat_template_kwargs": {},
    }
    responses, scores = out / "responses.parquet", out / "scores.parquet"
    generate_responses(
        role_paths=[ROLES / f"{name}.yaml" for name in names],
        questions_path=QUESTIONS,
        responses_path=responses,
        journal_folder=out / "journal" / "generate_responses",
        name="elicitation",
        n_questions=n_questions,
        prompts_per_role=N_INSTRUCTIONS,
        default_prompts=1,
        engine="transformers",
        temperature=0.7,
        top_p=0.9,
        max_new_tokens=N_TOKENS,
        seed=0,
        batch_size=64,
        n_gpus=0,
        vllm={},
        layers="all",
        target_layer_setting="auto",
        **settings,
    )
    judge_responses(
        responses_path=responses,
        default_role_path=ROLES / "default.yaml",
        scores_path=scores,
        journal_folder=out / "journal" / "judge_responses",
        backend="likelihood",
        thresholds=[-0.01, 0.01],
        max_unscored=1.0,
        tokens_per_batch=2048,
        **settings,
    )
    rows = read_table(responses)[0].to_pandas()
    judged = read_table(scores, ["rollout_id", "score", "raw"])[0].to_pandas()
    rows = rows.merge(judged, on="rollout_id", validate="one_to_one")
    rows["ratio"] = rows["raw"].astype(float)
    return rows


def table(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Ratio and shares of scores by something, weakest first; refusals are a score of 0."""
    grouped = rows.groupby(by)
    shares = {
        name: grouped["score"].agg(lambda score, value=value: (score == value).mean())
        for name, value in {"scored 3": 3, "scored 1": 1, "refused": 0}.items()
    }
    columns = {
        "roles": grouped["role"].nunique(),
        "responses": grouped.size(),
        "ratio": grouped["ratio"].mean(),
        **shares,
    }
    return pd.DataFrame(columns).sort_values("ratio")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model folder, after make axis")
    parser.add_argument("--out", type=Path, default=Path("results/elicitation"))
    parser.add_argument("--roles", nargs="+", help="these instead of the sample")
    parser.add_argument("--questions", type=int, default=4, help="from the top of the file")
    parser.add_argument("--read", type=int, default=15, help="weakest instructions to print")
    options = parser.parse_args()

    roles = load_roles(ROLES, prompts_per_role=N_INSTRUCTIONS)
    names = options.roles or sample(roles.values(), N_ROLES)
    groups = Counter(roles[name].group for name in names)
    print(f"{len(names)} roles:", ", ".join(f"{n} {group}" for group, n in sorted(groups.items())))

    rows = measure(options.model, names, options.questions, options.out)
    rows["group"] = [roles[name].group for name in rows["role"]]
    rows["form"] = [FORMS[i] for i in rows["prompt_index"]]
    rows["instruction"] = rows["role"] + " " + (rows["prompt_index"] + 1).astype(str)
    for by in ("group", "form", "role", "instruction"):
        print(f"\nby {by}, ratio in nats per token")
        print(table(rows, by).to_string(float_format="{:.2f}".format))
    for name in table(rows, "instruction").index[: options.read]:
        own = rows[rows["instruction"] == name]
        print(f"\n{name}: {own['system_prompt'].iloc[0]}")
        for _, row in own.iterrows():
            response = " ".join(row["response"].split())
            print(f"  {row['ratio']:+.2f}  {row['question']}  |  {response}")


if __name__ == "__main__":
    main()
