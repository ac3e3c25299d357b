import json

import pytest
import yaml

from axiskit.errors import QuestionError, RoleError
from axiskit.questions import load_questions
from axiskit.roles import find_role_files, load_role, load_roles
from axiskit.rollouts import plan_rollouts, shard_of

PIRATE = {
    "name": "pirate",
    "kind": "role",
    "group": "archetype",
    "description": "Sails.",
    "instructions": ["You are a pirate.", "Speak like a pirate."],
}
SELF = {
    "name": "plain",
    "kind": "default",
    "group": "default",
    "description": "",
    "instructions": ["", "You are {model_name}."],
}


def write(folder, *roles):
    folder.mkdir(exist_ok=True)
    for role in roles:
        (folder / f"{role['name']}.yaml").write_text(yaml.safe_dump(role))
    return folder


def test_default_is_a_kind_not_a_name(tmp_path):
    roles = load_roles(write(tmp_path / "roles", PIRATE, SELF))
    rollouts = plan_rollouts(
        roles.values(),
        ["Why?"],
        prompts_per_role=1,
        default_prompts=2,
        model_name="Tiny",
        seed=0,
    )
    assert [(r.rollout_id, r.kind, r.system_prompt) for r in rollouts] == [
        ("pirate/0/0", "role", "You are a pirate."),
        ("plain/0/0", "default", ""),
        ("plain/1/0", "default", "You are Tiny."),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instructions": []}, "instructions: none found"),
        ({"instructions": ["a", "a"]}, "two are the same"),
        ({"instructions": ["a", " "]}, "one is empty"),
        ({"instructions": "a"}, "instructions: Input should be a valid list"),
        ({"kind": "hero"}, "kind: found 'hero', role or default needed"),
        ({"name": "parrot"}, "name: found 'parrot'"),
        ({"grup": "x"}, "grup: Extra inputs"),
    ],
)
def test_bad_role_file_names_file_and_key(tmp_path, change, said):
    path = tmp_path / "pirate.yaml"
    path.write_text(yaml.safe_dump(PIRATE | change))
    with pytest.raises(RoleError) as error:
        load_role(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_file_without_the_key_at_all_and_one_that_is_no_yaml(tmp_path):
    path = tmp_path / "pirate.yaml"
    path.write_text("name: pirate\nkind: role\ngroup: g\ndescription: d\n")
    with pytest.raises(RoleError, match="instructions: Field required"):
        load_role(path)
    path.write_text("name: [")
    with pytest.raises(RoleError, match="cannot be parsed"):
        load_role(path)


def test_roles_must_fit_together(tmp_path):
    folder = write(tmp_path / "roles", PIRATE)
    with pytest.raises(RoleError, match="0 files with 'kind: default'"):
        load_roles(folder)
    write(folder, SELF)
    with pytest.raises(RoleError, match=r"'pirate': 2 instructions, 3 needed \(prompts_per_role\)"):
        load_roles(folder, prompts_per_role=3)
    with pytest.raises(RoleError, match=r"'plain': 2 instructions, 9 needed \(default_prompts\)"):
        load_roles(folder, default_prompts=9)
    with pytest.raises(RoleError, match=r"no file for role 'pirat'.*did you mean 'pirate'"):
        find_role_files(folder, ["pirat"])
    with pytest.raises(RoleError, match=r"no such folder \(roles\.dir\)"):
        find_role_files(tmp_path / "none")


def test_published_role_format_loads(tmp_path):
    def role(*texts):
        entries = [{"pos": text} for text in texts]
        return json.dumps({"instruction": entries, "eval_prompt": "Q {question} A {answer}"})

    (tmp_path / "ghost.json").write_text(role("Haunt.", "You are a ghost."))
    (tmp_path / "default.json").write_text(role("", "You are {model_name}."))
    roles = load_roles(tmp_path)
    assert roles["ghost"].instructions == ["Haunt.", "You are a ghost."]
    assert roles["ghost"].eval_prompt == "Q {question} A {answer}"
    assert roles["default"].kind == "default"
    (tmp_path / "ghost.json").write_text("{}")
    with pytest.raises(RoleError, match="instruction: missing"):
        load_roles(tmp_path)


def test_a_role_stays_in_its_shard_when_others_come():
    assert shard_of("pirate", 4) == "003"
    assert {shard_of(name, 3) for name in ("a", "b", "c", "d", "e")} <= {"000", "001", "002"}


def test_rollout_seeds_depend_on_what_it_is_alone(tmp_path):
    roles = load_roles(write(tmp_path / "roles", PIRATE, SELF))

    def seeds(questions, seed=0, names=("pirate", "plain")):
        planned = plan_rollouts(
            [roles[name] for name in names],
            questions,
            prompts_per_role=2,
            default_prompts=2,
            model_name="Tiny",
            seed=seed,
        )
        return {(r.role, r.system_prompt, r.question): r.seed for r in planned}

    few, more = seeds(["Why?"]), seeds(["How?", "Why?"])
    assert few.items() <= more.items()
    assert seeds(["Why?"], names=("plain", "pirate")) == few
    assert len(set(more.values())) == len(more) == 8
    assert not set(seeds(["Why?"], seed=1).values()) & set(few.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "Why?", "id": 1}\nnope\n', "line 2: found 'nope'"),
        ('{"question": "Why?"}\n{"question": "Why?"}\n', "line 2: same question as line 1"),
        ('{"question": ""}\n', "line 1: question: found ''"),
        ('{"question": "Why?"}\n\n', r"1 questions, 2 needed \(questions\.count\)"),
    ],
)
def test_bad_question_file(tmp_path, text, said):
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(QuestionError, match=said):
        load_questions(path, 2)


def test_missing_question_file(tmp_path):
    with pytest.raises(QuestionError, match=r"questions\.file"):
        load_questions(tmp_path / "none.jsonl")
