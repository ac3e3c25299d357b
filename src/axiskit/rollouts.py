"""What is generated: one rollout for each role, instruction and question.

A rollout's seed comes from what it is (run seed, role, prompt, question), never from where it
stands in a shard, a batch or a file: the same rollout is sampled the same wherever it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from axiskit.roles import Role


@dataclass(frozen=True)
class Rollout:
    """One question to one role under one instruction, before it is answered.

    Attributes:
        rollout_id: ``role/prompt_index/question_index``, unique in a run.
        system_prompt: The instruction; ``""`` means that no system message is sent.
        seed: 63-bit seed of this rollout alone.
    """

    rollout_id: str
    role: str
    kind: str
    prompt_index: int
    question_index: int
    system_prompt: str
    question: str
    seed: int


def shard_of(role: str, n_shards: int) -> str:
    """The shard a role belongs to: sha256 of its name modulo the number of shards.

    >>> shard_of("pirate", 4)
    '003'
    """
    digest = hashlib.sha256(role.encode()).digest()
    return f"{int.from_bytes(digest, 'big') % n_shards:03d}"


def digest(*parts: Any) -> str:
    """32 hex digits of sha256 over the JSON form of ``parts``: keys, seeds, fingerprints."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def plan_rollouts(
    roles: Iterable[Role],
    questions: Sequence[str],
    *,
    prompts_per_role: int,
    default_prompts: int,
    model_name: str,
    seed: int,
) -> list[Rollout]:
    """List the rollouts of these roles, ordered by role, prompt and question.

    Raises:
        RoleError: A role has fewer instructions than ``prompts_per_role``, or the default fewer
            than ``default_prompts``.
    """
    counts = {"role": prompts_per_role, "trait": prompts_per_role, "default": default_prompts}
    return [
        Rollout(
            rollout_id=f"{role.name}/{prompt_index}/{question_index}",
            role=role.name,
            kind=role.kind,
            prompt_index=prompt_index,
            question_index=question_index,
            system_prompt=prompt,
            question=question,
            seed=int(digest(seed, role.name, prompt, question)[:16], 16) >> 1,
        )
        for role in sorted(roles, key=lambda role: role.name)
        for prompt_index, prompt in enumerate(role.prompts(counts[role.kind], model_name))
        for question_index, question in enumerate(questions)
    ]
