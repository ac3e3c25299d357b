"""The instrument that is shipped: complete, readable, and every prompt written for itself."""

import itertools
import re
from collections import Counter, defaultdict

import yaml
from conftest import ROOT

from axiskit.questions import load_questions
from axiskit.roles import load_roles

RESOURCES = ROOT / "resources"
ROLES = load_roles(RESOURCES / "roles", prompts_per_role=5, default_prompts=5)
TRAITS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((RESOURCES / "traits").glob("*.yaml"))
}
GROUPS = {
    *("abstract", "archetype", "circumstance", "collective", "function", "life_stage", "machine"),
    *("mythical", "nature", "profession", "temperament", "worldview"),
}
QUESTION_CYCLE = [
    *("advice", "science", "feelings", "self", "society", "planning", "ethics", "creativity"),
    *("technology", "meaning", "conflict", "opinion"),
]


def instructions():
    """Name of its file, place in it and text of every instruction of roles and traits."""
    for name, role in ROLES.items():
        if role.kind == "role":
            yield from ((name, str(i), text) for i, text in enumerate(role.instructions))
    for name, trait in TRAITS.items():
        for i, pair in enumerate(trait["instructions"]):
            yield from ((name, f"{i} {pole}", text) for pole, text in pair.items())


INSTRUCTIONS = list(instructions())


def words(text):
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower())


def without_name(name, text):
    """Words of a text, with a mark in place of the name of its role."""
    own = {part.rstrip("s") for part in name.split("_")}
    return ["*" if word.rstrip("s") in own else word for word in words(text)]


def near_duplicates(texts, most=0.5):
    """Pairs of texts, given as lists of words, that share more than ``most`` of the 5-grams.

    As a share of the shorter text's; two short texts without a 5-gram are duplicates when equal.
    """
    grams = [
        {tuple(text[i : i + 5]) for i in range(len(text) - 4)} or {tuple(text)} for text in texts
    ]
    holders = defaultdict(list)
    for i, own in enumerate(grams):
        for gram in own:
            holders[gram].append(i)
    shared = Counter(
        pair for holder in holders.values() for pair in itertools.combinations(holder, 2)
    )
    return [(i, j) for (i, j), n in shared.items() if n > most * min(len(grams[i]), len(grams[j]))]


def test_the_set_is_complete():
    kinds = Counter(role.kind for role in ROLES.values())
    assert kinds == {"role": 275, "default": 1}
    assert len(TRAITS) == 240
    assert len(load_questions(RESOURCES / "questions.jsonl", 240)) == 240
    assert {role.group for role in ROLES.values() if role.kind == "role"} == GROUPS


def test_the_default_is_neutral():
    texts = ROLES["default"].instructions
    assert len(texts) == 5
    assert texts.count("") == 1
    assert sum("{model_name}" in text for text in texts) == 1


def test_every_trait_has_five_pairs():
    for name, trait in TRAITS.items():
        assert set(trait) == {"name", "kind", "description", "instructions"}, name
        assert (trait["name"], trait["kind"]) == (name, "trait")
        assert [set(pair) for pair in trait["instructions"]] == [{"positive", "negative"}] * 5, name


def test_near_duplicates_are_found():
    """The check itself: the same but for the name, and a text reworded a little."""
    one = "You are a pirate who sails the seven seas and never once tells the truth to a king."
    two = "You are a poet who sails the seven seas and never once tells the truth to a king."
    three = "Be a pirate who sails the seven seas and never once tells the truth to any king."
    other = "Speak in the voice of old rope and tar, and swear by your ship in every answer."
    texts = [without_name("pirate", one), without_name("poet", two)]
    assert near_duplicates(texts) == [(0, 1)]
    assert near_duplicates([words(one), words(three)]) == [(0, 1)]
    assert near_duplicates([words(one), words(other)]) == []


def test_no_two_instructions_are_alike():
    found = near_duplicates([without_name(name, text) for name, _, text in INSTRUCTIONS], 0.25)
    pairs = [(INSTRUCTIONS[i], INSTRUCTIONS[j]) for i, j in found]
    assert pairs == []


def test_no_two_questions_are_alike():
    questions = load_questions(RESOURCES / "questions.jsonl", 240)
    assert near_duplicates([words(question) for question in questions]) == []


def test_openings_vary():
    """No two instructions of a file begin with the same two words, and no opening is worn out."""
    for name, own in itertools.groupby(INSTRUCTIONS, key=lambda entry: entry[0]):
        openings = Counter(" ".join(words(text)[:2]) for _, _, text in own)
        assert openings.most_common(1)[0][1] == 1, (name, openings.most_common(1))
    openings = Counter(" ".join(words(text)[:3]) for _, _, text in INSTRUCTIONS)
    worn = {opening: n for opening, n in openings.items() if n > 12}
    # of a role's first instruction, who it is
    assert all(opening.startswith("you are a") for opening in worn), worn
    assert sum(worn.values()) < 0.1 * len(INSTRUCTIONS)


def test_length_and_readability():
    for name, place, text in INSTRUCTIONS:
        assert 10 <= len(text.split()) <= 60, (name, place)
        assert lix(text) <= 65, (name, place, lix(text))


def lix(text):
    """Readability by sentence length and long words: 40 newspapers, 60 and more heavy prose.

    Source: Björnsson 1968.
    """
    found = words(text)
    sentences = max(1, len(re.findall(r"[.!?:…]+(?:\s|$)", text)))
    return len(found) / sentences + 100 * sum(len(word) > 6 for word in found) / len(found)


def test_descriptions_can_be_judged_by():
    described = {name: role.description for name, role in ROLES.items() if role.kind == "role"}
    described |= {f"trait {name}": trait["description"] for name, trait in TRAITS.items()}
    for name, text in described.items():
        assert 8 <= len(text.split()) <= 45, name
    assert near_duplicates([words(text) for text in described.values()]) == []


def test_no_prompt_speaks_of_an_ai():
    for name, place, text in INSTRUCTIONS:
        assert not re.search(r"\bas an ai\b|language model|\bchatbot\b", text, re.I), (name, place)
        assert "{" not in text, (name, place)  # placeholders are the default's


def test_the_first_questions_are_a_balanced_sample():
    lines = (RESOURCES / "questions.jsonl").read_text().splitlines()
    rows = [yaml.safe_load(line) for line in lines]
    assert [row["id"] for row in rows] == [f"q{i:03d}" for i in range(1, 241)]
    for i, row in enumerate(rows):
        assert row["category"] == QUESTION_CYCLE[i % len(QUESTION_CYCLE)], row["id"]
        assert 6 <= len(row["question"].split()) <= 40, row["id"]
