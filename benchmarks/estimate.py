"""The estimate of a run against the run: tokens, time, disk, memory.

    .venv/bin/python benchmarks/estimate.py [--configfile my.yaml]

Needs the finished run of that config in results/ (the default run without one), and probes its
model for about two minutes. Prints a table; nothing is written. Times are those of all jobs of a
stage together, the actual ones from benchmarks/. Run it on a machine as quiet as it was during the
run.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

from axiskit.activations import encode_response
from axiskit.artifacts import read_table
from axiskit.disk import PLACES, REST, show_bytes, size_on_disk
from axiskit.estimate import make_estimate, show_seconds
from axiskit.models import load_tokenizer
from axiskit.preflight import Plan, probe_plan, read_plan


def measurements(results: Path) -> dict[str, list[dict[str, str]]]:
    """Snakemake's benchmark of each job, by stage."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted((results / "benchmarks").rglob("*.tsv")):
        rule = path.parent.name if path.parent.name != "benchmarks" else path.stem
        with open(path, encoding="utf-8") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
        found.setdefault(rule if rule in PLACES else REST, []).append(row)
    return found


def tokens_of(plan: Plan) -> dict[str, tuple[int, int]]:
    """Tokens read and written, by stage, from the tables of the run."""
    tokenizer = load_tokenizer(plan.model_path, revision=plan.config.model.revision)
    read = written = judged = 0
    for path in sorted((plan.results / "responses").glob("*.parquet")):
        for row in read_table(path)[0].to_pylist():
            tokens, _ = encode_response(
                tokenizer,
                row["system_prompt"],
                row["question"],
                row["response"],
                **plan.config.model.chat_template_kwargs,
            )
            read += len(tokens)
            written += row["n_tokens"]
    for path in sorted((plan.results / "scores").glob("*.parquet")):
        judged += sum(filter(None, read_table(path)[0]["tokens_in"].to_pylist()))
    judging = "ask_judge" if plan.config.judge.is_hosted else "judge_responses"
    return {
        "generate_responses": (read - written, written),
        "extract_activations": (read, 0),
        judging: (judged, 0),
    }


def main() -> None:
    """Estimate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, action="append", default=[])
    parser.add_argument("--directory", type=Path, default=Path())
    arguments = parser.parse_args()
    plan = read_plan(arguments.configfile, directory=arguments.directory)
    threads, at_once = plan.jobs_at_once()
    speed, lengths = probe_plan(plan, threads, at_once)
    found = make_estimate(
        plan.config, plan.workload, plan.size, lengths=lengths, speed=speed, jobs_at_once=at_once
    )
    jobs, tokens = measurements(plan.results), tokens_of(plan)
    print(f"{speed.source}; it got {speed.core_share:.0%} of its cores; lengths {lengths.source}\n")
    print("| Stage | What | Estimate | Actual | Ratio |\n|---|---|---|---|---|")

    def row(
        stage: str, what: str, shown: Callable[[float], object], estimate: float, actual: float
    ) -> None:
        text = [str(shown(value)) for value in (estimate, actual)]
        print(f"| `{stage}` | {what} | {text[0]} | {text[1]} | {estimate / actual:.2f} |")

    for stage in found.stages:
        for what, estimate, actual in zip(
            ("tokens in", "tokens out"),
            (stage.tokens_read, stage.tokens_written),
            tokens.get(stage.name, (0, 0)),
            strict=True,
        ):
            if actual:
                row(stage.name, what, round, estimate or 0, actual)
        if stage.seconds is not None and stage.name in jobs:
            seconds = sum(float(job["s"]) for job in jobs[stage.name])
            row(stage.name, "time", show_seconds, stage.seconds, seconds)
        disk = size_on_disk(plan.results / place for place in PLACES[stage.name])
        if stage.disk is not None and disk:
            row(stage.name, "disk", show_bytes, stage.disk, disk)
    if found.memory and plan.config.generation.engine == "transformers":  # vLLM takes what it gets
        peak = max(float(job["max_rss"]) for job in jobs["generate_responses"]) * 2**20
        row("generate_responses", "memory of a job", show_bytes, found.memory.total, peak)


if __name__ == "__main__":
    main()
