"""Traits: what a character can be more or less of, asked for at both poles.

A trait's two poles run through the workflow as two characters do: they are asked the same questions
and their responses are judged and read alike. The trait vector is the mean activation of the
positive pole less that of the negative one:

    trait[layer] = mean(positive response activations) - mean(negative response activations)

It points to more of the trait. Its cosine with the Assistant Axis says how Assistant-like the trait
is, whatever its length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from axiskit.errors import RoleError, VectorError
from axiskit.picking import pick_files
from axiskit.roles import Role, clear_errors, has_kind, load_role, read_yaml
from axiskit.rollouts import shard_of

POLES: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")


class Pole(Role):
    """One pole of a trait, to be played like a role; named ``calm+`` or ``calm-``.

    Attributes:
        trait: The trait's name.
        pole: Which of the two.
    """

    trait: str
    pole: Literal["positive", "negative"]


class Pair(BaseModel):
    """Two system prompts that ask for a trait and for its opposite, in the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    positive: str = Field(pattern=r"\S")
    negative: str = Field(pattern=r"\S")


class Trait(BaseModel):
    """A trait file.

    Attributes:
        name: The file's name without its ending.
        description: One or two sentences that a judge can use.
        instructions: Pairs of system prompts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    kind: Literal["trait"]
    description: str = Field(pattern=r"\S")
    instructions: list[Pair] = Field(min_length=1)

    def poles(self) -> tuple[Pole, Pole]:
        """The two poles as characters, positive first."""
        positive, negative = (
            Pole(
                name=f"{self.name}{sign}",
                kind="trait",
                group="trait",
                description=self.description,
                instructions=[getattr(pair, pole) for pair in self.instructions],
                trait=self.name,
                pole=pole,
            )
            for sign, pole in zip("+-", POLES, strict=True)
        )
        return positive, negative


def find_trait_files(folder: str | Path, include: Sequence[str] | str) -> dict[str, Path]:
    """Map trait name to file for the included traits, sorted by name; none for ``[]``.

    Raises:
        RoleError: The folder is missing or empty, or an included trait has no file.
    """
    if not include:
        return {}
    return pick_files(folder, include, kind="trait", key="traits", error=RoleError)


def load_trait(path: str | Path, *, n_pairs: int = 1) -> Trait:
    """Read one trait file.

    Args:
        path: The file.
        n_pairs: Pairs of instructions that it needs to have.

    Raises:
        RoleError: The file is missing, malformed or lacks something; the message names the key.
    """
    path = Path(path)
    with clear_errors(path):
        trait = Trait.model_validate(read_yaml(path))
    if trait.name != path.stem:
        raise RoleError(f"{path}: name: found '{trait.name}', the file's name needs '{path.stem}'")
    if len(trait.instructions) < n_pairs:
        raise RoleError(
            f"{path}: {len(trait.instructions)} pairs of instructions, {n_pairs} needed "
            "(prompts_per_role); write more or lower it"
        )
    texts = [text for pole in trait.poles() for text in pole.instructions]
    if len(set(texts)) < len(texts):
        raise RoleError(f"{path}: instructions: two are the same; each needs to differ")
    return trait


def trait_shard(trait: str, n_shards: int) -> str:
    """The shard a trait belongs to. Traits have shards apart from those of roles.

    >>> trait_shard("calm", 4)
    'traits-001'
    """
    return f"traits-{shard_of(trait, n_shards)}"


def load_characters(paths: Iterable[str | Path]) -> list[Role]:
    """Who answers in a shard: roles, or both poles of traits, as the files say."""
    characters: list[Role] = []
    for path in map(Path, paths):
        if path.suffix == ".yaml" and path.exists() and has_kind(path, "trait"):
            characters += load_trait(path).poles()
        else:
            characters.append(load_role(path))
    return characters


def compute_trait_vectors(
    *,
    trait_paths: Sequence[str | Path],
    scores_paths: Sequence[str | Path],
    activations_paths: Sequence[str | Path],
    trait_vectors_path: str | Path,
    judge_reads: bool,
    min_score: int,
    min_responses: int,
) -> None:
    """Average each pole's activations and write their differences to trait_vectors.pt.

    Args:
        trait_paths: Files of all traits.
        scores_paths: Scores of all their responses.
        activations_paths: Activations of all their responses.
        trait_vectors_path: Where to write.
        judge_reads: Whether scores say how strongly the trait shows, 0 to 100: then positive
            responses count from ``min_score`` up, and negative ones below it. Else they say, from 0
            to 3, how far a pole's own prompt left its trace: both count from ``min_score`` up.
        min_score: See there.
        min_responses: Such responses that each pole needs.

    Raises:
        VectorError: No trait has enough of them at both poles.
    """
    import torch

    from axiskit.artifacts import read_table, stage_metadata, write_pt
    from axiskit.vectors import mean_activations_by_character

    poles = {pole.name: pole for path in trait_paths for pole in load_trait(path).poles()}
    metadatas = []
    scores: dict[str, int | None] = {}
    given: dict[str, list[int | None]] = defaultdict(list)
    for path in scores_paths:
        table, metadata = read_table(path, ["rollout_id", "role", "score"])
        metadatas.append(metadata)
        for rollout_id, character, score in zip(
            *(table.column(name).to_pylist() for name in ("rollout_id", "role", "score")),
            strict=True,
        ):
            scores[rollout_id] = score
            given[character].append(score)

    def is_used(rollout_id: str, character: str) -> bool:
        score = scores.get(rollout_id)
        if score is None:
            return False
        if judge_reads and poles[character].pole == "negative":
            return score < min_score
        return score >= min_score

    means = mean_activations_by_character(activations_paths, is_used)
    rows = []
    for positive, negative in zip(*(iter(poles.values()),) * 2, strict=True):
        row: dict[str, Any] = {"trait": positive.trait}
        for pole in (positive, negative):
            known = [score for score in given[pole.name] if score is not None]
            row[f"n_{pole.pole}"] = len(given[pole.name])
            row[f"n_used_{pole.pole}"] = means.counts[pole.name]
            row[f"mean_score_{pole.pole}"] = sum(known) / len(known) if known else math.nan
        few = [pole for pole in POLES if row[f"n_used_{pole}"] < min_responses]
        row["used"] = not few
        row["reason"] = (
            "; ".join(f"{row[f'n_used_{pole}']} {pole} responses count" for pole in few)
            + f", {min_responses} needed (vectors.min_responses)"
            if few
            else None
        )
        rows.append(row)
    kept = [row["trait"] for row in rows if row["used"]]
    if not kept:
        raise VectorError(
            f"none of {len(rows)} traits has {min_responses} responses that count at both poles "
            "(vectors.min_responses, "
            f"{'traits' if judge_reads else 'vectors'}.min_score); lower one of them, or raise "
            f"questions.count; the first: {rows[0]['trait']}: {rows[0]['reason']}"
        )
    vectors = [means.vectors[f"{name}+"] - means.vectors[f"{name}-"] for name in kept]
    write_pt(
        trait_vectors_path,
        {
            "traits": kept,
            "vectors": torch.stack(vectors),
            "counts": rows,
            "layers": means.layers,
            "metadata": stage_metadata(
                "compute_trait_vectors",
                [*metadatas, *means.metadatas],
                judge_reads=judge_reads,
                min_score=min_score,
                min_responses=min_responses,
            ),
        },
    )


def load_trait_vectors(path: str | Path) -> dict[str, Any]:
    """Read trait_vectors.pt.

    Returns:
        ``traits`` (names of those used), ``vectors`` [trait, layer, hidden] float32, ``counts`` (a
        mapping for each trait, also those left out: responses, those used, mean scores, reason),
        ``layers``, ``metadata``.

    Raises:
        ArtifactError: It is not such a file, or its parts do not fit together.
    """
    from axiskit.artifacts import check_shape, read_pt

    content: dict[str, Any] = read_pt(path, ["traits", "vectors", "counts", "layers", "metadata"])
    check_shape(path, content["vectors"], content["layers"], content["metadata"])
    return content


def rank_traits(
    *,
    trait_vectors_path: str | Path,
    axis_path: str | Path,
    traits_path: str | Path,
    target_layer_setting: str | int,
) -> None:
    """Write traits.parquet: each trait's cosine with the axis, the highest first.

    One row a trait, also those left out: counts and mean scores at both poles; ``cosine`` and
    ``norm`` (in units of the activations) at the target layer, and a cosine ``layer_<i>`` each.

    Raises:
        ArtifactError: Axis and trait vectors are of different models or layers.
    """
    import pyarrow as pa

    from axiskit.artifacts import stage_metadata, write_table
    from axiskit.axis import cosine_similarity_per_layer, layer_position, read_axis
    from axiskit.layers import target_layer

    content = load_trait_vectors(trait_vectors_path)
    axis, axis_metadata = read_axis(axis_path)
    layers = content["layers"]
    metadata = stage_metadata(
        "rank_traits", [content["metadata"], axis_metadata], target_layer=target_layer_setting
    )
    target = target_layer(target_layer_setting, layers, metadata["model"]["n_layers"])
    metadata["layers"], metadata["target_layer"] = layers, target
    at = layer_position(layers, target)
    measured = {
        name: (cosine_similarity_per_layer(vector, axis), vector[at].norm())
        for name, vector in zip(content["traits"], content["vectors"], strict=True)
    }
    rows = []
    for counts in content["counts"]:
        row = dict(counts)
        cosines, norm = measured.get(counts["trait"], (None, None))
        row["cosine"] = None if cosines is None else float(cosines[at])
        row["norm"] = None if norm is None else float(norm)
        for position, layer in enumerate(layers):
            row[f"layer_{layer}"] = None if cosines is None else float(cosines[position])
        rows.append(row)
    rows.sort(key=lambda row: (row["cosine"] is None, -(row["cosine"] or 0.0), row["trait"]))
    types = {"trait": pa.string(), "used": pa.bool_(), "reason": pa.string()}
    schema = pa.schema(
        [
            (name, types.get(name, pa.int32() if name.startswith("n_") else pa.float64()))
            for name in rows[0]
        ]
    )
    write_table(traits_path, pa.Table.from_pylist(rows, schema=schema), metadata)
