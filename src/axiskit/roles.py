"""Role files: who the model is asked to be.

Two formats are read: ours (YAML, see docs/files.md) and the published one (JSON,
``{"instruction": [{"pos": ...}], "eval_prompt": ...}``), so ``roles.dir`` may point at either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from axiskit.errors import RoleError
from axiskit.picking import pick_files

_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Role(BaseModel):
    """A character (``kind`` role), the model as itself (default), or a trait's pole (trait).

    Attributes:
        name: The file's name without its ending; of a pole see :class:`axiskit.traits.Pole`.
        kind: Nothing is inferred from the name.
        group: What sort of character; colours figures and groups tables.
        description: One or two sentences that a judge can use.
        instructions: System prompts that ask for the role; ``""`` means none at all (default only).
        eval_prompt: The role's own judge prompt (published format only).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    kind: Literal["role", "default", "trait"]
    group: str
    description: str
    instructions: list[str]
    eval_prompt: str | None = None

    def prompts(self, count: int, model_name: str) -> list[str]:
        """The first ``count`` instructions with ``{model_name}`` filled in.

        Raises:
            RoleError: There are fewer than ``count``.
        """
        if len(self.instructions) < count:
            key = "default_prompts" if self.kind == "default" else "prompts_per_role"
            raise RoleError(
                f"role '{self.name}': {len(self.instructions)} instructions, {count} needed "
                f"({key}); write more or lower it"
            )
        return [text.replace("{model_name}", model_name) for text in self.instructions[:count]]


def find_role_files(folder: str | Path, include: Sequence[str] | str = "all") -> dict[str, Path]:
    """Map role name to file for the included roles, sorted by name; the default always comes along.

    Raises:
        RoleError: The folder is missing or empty, or an included role has no file.
    """
    return pick_files(
        folder,
        include,
        kind="role",
        key="roles",
        error=RoleError,
        suffixes=tuple(_READERS),
        always=lambda path: has_kind(path, "default"),
    )


def load_role(path: str | Path) -> Role:
    """Read one role file.

    Raises:
        RoleError: The file is missing, malformed or lacks something; the message names the key.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise RoleError(f"{path}: a role file ends with .yaml or .json")
    with clear_errors(path):
        role = _READERS[path.suffix](path)
    _check(role, path)
    return role


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn what reading and validating a file raises into a RoleError that names file and key."""
    try:
        yield
    except FileNotFoundError:
        raise RoleError(f"{path}: no such file") from None
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RoleError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise RoleError(f"{path}: {key}: {problem['msg'].removeprefix('Value error, ')}") from None


def load_roles(
    folder: str | Path,
    include: Sequence[str] | str = "all",
    *,
    prompts_per_role: int = 1,
    default_prompts: int = 1,
) -> dict[str, Role]:
    """Read the included roles, sorted by name, and check that they can be run together.

    Raises:
        RoleError: A file is bad, there is not exactly one default, there is no role beside it, or
            one has fewer instructions than ``prompts_per_role`` (the default: ``default_prompts``).
    """
    roles = {name: load_role(path) for name, path in find_role_files(folder, include).items()}
    defaults = [role.name for role in roles.values() if role.kind == "default"]
    if len(defaults) != 1:
        raise RoleError(
            f"{folder}: {len(defaults)} files with 'kind: default' {defaults or ''}, 1 needed: the "
            "model as itself"
        )
    if len(roles) < 2:
        raise RoleError(f"{folder}: no role beside the default (roles.include)")
    for role in roles.values():
        role.prompts(default_prompts if role.kind == "default" else prompts_per_role, "")
    return roles


def has_kind(path: Path, kind: str) -> bool:
    """Whether a file is of a kind: a look at its text, since parsing all files is slow."""
    if path.suffix == ".json":
        return path.stem == "default" and kind == "default"
    found = re.search(
        r"^[\"']?kind[\"']?:\s*[\"']?(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    return found is not None and found[1] == kind


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RoleError: It holds something else.
    """
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)
    if not isinstance(data, dict):
        raise RoleError(f"{path}: a mapping is needed (name, kind, description, ...)")
    return data


def _read_yaml(path: Path) -> Role:
    data = read_yaml(path)
    if data.get("kind", "role") not in ("role", "default"):
        raise RoleError(f"{path}: kind: found {data['kind']!r}, role or default needed (roles.dir)")
    return Role.model_validate(data)


def _read_published(path: Path) -> Role:
    """The published format has no kind: there the file ``default.json`` is the default."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not isinstance(data.get("instruction"), list):
        raise RoleError(f"{path}: instruction: missing; a list of {{'pos': text}} is needed")
    try:
        instructions = [entry["pos"] for entry in data["instruction"]]
    except (TypeError, KeyError):
        raise RoleError(f"{path}: instruction: each entry needs a text under 'pos'") from None
    is_default = path.stem == "default"
    return Role.model_validate(
        {
            "name": path.stem,
            "kind": "default" if is_default else "role",
            "group": "default" if is_default else "role",
            "description": "",
            "instructions": instructions,
            "eval_prompt": data.get("eval_prompt") or None,
        }
    )


_READERS = {".yaml": _read_yaml, ".json": _read_published}


def _check(role: Role, path: Path) -> None:
    if role.name != path.stem:
        raise RoleError(f"{path}: name: found '{role.name}', the file's name needs '{path.stem}'")
    if not role.instructions:
        raise RoleError(f"{path}: instructions: none found, at least one needed; write some")
    if role.kind == "role" and not all(text.strip() for text in role.instructions):
        raise RoleError(
            f"{path}: instructions: one is empty; only the default may have an empty one"
        )
    if len(set(role.instructions)) < len(role.instructions):
        raise RoleError(f"{path}: instructions: two are the same; each needs to differ")
