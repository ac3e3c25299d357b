"""What a config asks of any model: rollouts, lengths of texts, and tokens.

Light on purpose (no torch, no pandas): the Snakefile asks before the first job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from axiskit.config import CONDITIONS, Config
from axiskit.judge_prompts import judge_prompt
from axiskit.roles import Role
from axiskit.rollouts import shard_of
from axiskit.traits import Pole, Trait, trait_shard


@dataclass(frozen=True)
class Workload:
    """What a config asks of any model: counts of rollouts, and lengths of texts in bytes of UTF-8.

    Attributes:
        rollouts: By kind of role.
        judged: Of these, those that a judge scores.
        shards: Rollouts of each shard.
        n_vectors: Roles, the default among them, and traits: each has a vector.
        prompt_bytes: Instruction and question of a rollout, mean.
        longest_prompt_bytes: The longest.
        question_bytes: A question, mean.
        judge_prompt_bytes: What a hosted judge is sent beside the response, mean.
        scripts: For each conversation the lengths of its user turns.
    """

    rollouts: Mapping[str, int]
    judged: int
    shards: tuple[int, ...]
    n_vectors: int
    prompt_bytes: float
    longest_prompt_bytes: int
    question_bytes: float
    judge_prompt_bytes: float
    scripts: tuple[tuple[int, ...], ...]

    @property
    def n_rollouts(self) -> int:
        """Rollouts of all kinds."""
        return sum(self.rollouts.values())


@dataclass(frozen=True)
class Lengths:
    """How bytes become tokens, and how long responses are; a probe measures it.

    Attributes:
        source: Where the numbers come from.
        bytes_per_token: Of a text.
        template_tokens: What the chat template adds to a system prompt and a question.
        neutral_tokens: What template and neutral prompt add to a question for the judge by
            likelihood; some templates add a system prompt of their own where there is none.
        response_share: Mean length of a response, in shares of ``max_new_tokens``.
        step_share: Decoding steps of a batch, likewise: its longest response decides.
    """

    source: str = "assumed: 4 bytes a token, responses as long as max_new_tokens allows"
    bytes_per_token: float = 4.0
    template_tokens: float = 15.0
    neutral_tokens: float = 15.0
    response_share: float = 1.0
    step_share: float = 1.0

    def tokens(self, n_bytes: float) -> float:
        """Tokens of a prompt with so many bytes in it."""
        return n_bytes / self.bytes_per_token + self.template_tokens


def plan_workload(
    config: Config,
    roles: Mapping[str, Role],
    questions: Sequence[str],
    scripts: Iterable[Sequence[str]],
    traits: Iterable[Trait] = (),
) -> Workload:
    """Count what a config asks for.

    Args:
        config: The config.
        roles: The included roles, the default among them.
        questions: Those that are asked.
        scripts: User turns of each conversation, those that are held.
        traits: The included traits.
    """
    n_prompts = config.prompts_per_role
    prompts_of = {"role": n_prompts, "trait": n_prompts, "default": config.default_prompts}
    characters = [*roles.values(), *(pole for trait in traits for pole in trait.poles())]
    name = config.model.display_name or config.model.name
    rollouts: Counter[str] = Counter()
    shards: Counter[str] = Counter()
    instruction_bytes, longest, judge_bytes = 0, 0, []
    for role in characters:
        prompts = [len(text.encode()) for text in role.prompts(prompts_of[role.kind], name)]
        rollouts[role.kind] += len(prompts) * len(questions)
        shard = (
            trait_shard(role.trait, config.shards)
            if isinstance(role, Pole)
            else shard_of(role.name, config.shards)
        )
        shards[shard] += len(prompts) * len(questions)
        instruction_bytes += sum(prompts) * len(questions)
        longest = max(longest, *prompts)
        if config.judge.is_hosted and role.kind != "default":
            judge_bytes.append(len(judge_prompt(role, question="", response="").encode()))
    lengths = [len(question.encode()) for question in questions]
    question_bytes = sum(lengths) / len(lengths)
    return Workload(
        rollouts=dict(rollouts),
        judged=rollouts["role"] + rollouts["trait"],
        shards=tuple(shards[shard] for shard in sorted(shards)),
        n_vectors=len(roles) + rollouts["trait"] // (2 * n_prompts * len(questions)),
        prompt_bytes=instruction_bytes / rollouts.total() + question_bytes,
        longest_prompt_bytes=longest + max(lengths),
        question_bytes=question_bytes,
        judge_prompt_bytes=(
            question_bytes + sum(judge_bytes) / len(judge_bytes) if judge_bytes else 0.0
        ),
        scripts=tuple(tuple(len(turn.encode()) for turn in turns) for turns in scripts),
    )


def stage_tokens(
    config: Config, workload: Workload, lengths: Lengths
) -> dict[str, tuple[float, float]]:
    """Tokens that models read and write, by stage.

    A conversation is read anew at each turn, as nothing is kept between them.
    """
    prompt = lengths.tokens(workload.prompt_bytes)
    response = config.generation.max_new_tokens * lengths.response_share
    n = workload.n_rollouts
    tokens = {
        "generate_responses": (n * prompt, n * response),
        "extract_activations": (n * (prompt + response), 0.0),
    }
    if config.judge.is_hosted:
        from axiskit.asking import estimated_tokens

        n_bytes = workload.judge_prompt_bytes + response * lengths.bytes_per_token
        tokens["ask_judge"] = (
            float(workload.judged * estimated_tokens(" " * round(n_bytes))),
            float(workload.judged * config.judge.max_tokens),
        )
    else:
        neutral = workload.question_bytes / lengths.bytes_per_token + lengths.neutral_tokens
        tokens["judge_responses"] = (workload.judged * (neutral + response), 0.0)
    answer = config.conversations.max_new_tokens * lengths.response_share
    read = written = final = 0.0
    for turns in workload.scripts:
        length = 0.0
        for turn in turns:
            length += lengths.tokens(turn)
            read += length
            length += answer
            written += answer
        final += length
    n_conditions = len(CONDITIONS)
    tokens["hold_conversation"] = (n_conditions * read, n_conditions * written)
    tokens["project_conversations"] = (n_conditions * final, 0.0)
    return tokens
