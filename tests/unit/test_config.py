from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from axiskit.config import Config, config_keys, validate_config
from axiskit.errors import ConfigError

DEFAULT = ROOT / "config" / "config.yaml"


@pytest.fixture
def values():
    return yaml.safe_load(DEFAULT.read_text())


def test_default_config_is_valid_and_sets_every_key(values):
    assert validate_config(values, [DEFAULT]).model.must_be_fetched

    def keys(node, prefix=""):
        for name, value in node.items():
            if isinstance(value, dict) and f"{prefix}{name}" not in config_keys():
                yield from keys(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    assert set(keys(values)) == set(config_keys())


def test_docs_name_every_key():
    text = (ROOT / "docs" / "config.md").read_text()
    assert [key for key in config_keys() if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("generation", "temprature", 0.5, "did you mean 'generation.temperature'?"),
        ("generation", "temperature", "hot", "found 'hot'"),
        ("generation", "top_p", 0, "greater than 0"),
        ("generation", "engine", "vlm", "found 'vlm'"),
        ("judge", "thresholds", [0.3, 0.1], "must increase"),
        ("judge", "max_unscored", 2.0, "less than or equal to 1"),
        ("vectors", "min_score", 4, "less than or equal to 3"),
        ("questions", "count", 0, "greater than 0"),
        ("model", "name", "../up", "pattern"),
        ("model", "dtype", "int4", "float32"),
        ("activations", "layers", [], "at least 1"),
    ],
)
def test_bad_value_names_file_key_and_finding(values, tmp_path, section, key, value, said):
    values[section][key] = value
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({section: {key: value}}))
    with pytest.raises(ConfigError) as error:
        validate_config(values, [DEFAULT, file])
    assert f"{file}: {section}.{key}: " in str(error.value)
    assert said in str(error.value)


def test_settings_that_cannot_end_well_are_told_at_once(values):
    values["vectors"]["min_responses"] = 13
    with pytest.raises(ConfigError, match=r"min_responses is 13, but a role has 12 responses"):
        validate_config(values, [DEFAULT])
    values["vectors"]["min_responses"] = 4
    values["model"]["target_layer"] = 40
    values["activations"]["layers"] = [3]
    with pytest.raises(
        ConfigError, match=r"target_layer 40 is not among activations\.layers \[3\]"
    ):
        validate_config(values, [DEFAULT])


def test_what_vllm_cannot_sample_is_told_at_once(values):
    values["generation"] |= {"engine": "vllm", "temperature": 0.001}
    with pytest.raises(ConfigError, match=r"temperature 0\.001 is raised to 0\.01 by vLLM"):
        validate_config(values, [DEFAULT])
    values["generation"] |= {"temperature": 0, "vllm": {"enforce_eagr": True}}
    with pytest.raises(ConfigError, match=r"did you mean 'generation\.vllm\.enforce_eager'\?"):
        validate_config(values, [DEFAULT])
    del values["generation"]["vllm"]
    assert validate_config(values, [DEFAULT]).generation.vllm.gpu_memory_utilization == 0.9


HOSTED = {"backend": "anthropic", "model": "claude-haiku-5-5"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "anthropic"}, r"backend anthropic needs judge\.model"),
        ({"model": "claude-haiku-5-5"}, "backend is likelihood, which asks nobody"),
        (HOSTED | {"model": "claude-x"}, r"judge\.prices has no price for claude-x"),
        (HOSTED | {"extra_body": {"model": "x"}}, r"extra_body sets \['model'\]"),
        (HOSTED | {"base_url": "http://me:secret@host"}, "base_url"),
        (
            HOSTED | {"model": "m", "base_url": "http://here:1", "max_cost_usd": 1.0},
            "has no price for m",
        ),
    ],
)
def test_a_judge_that_cannot_work_is_told_at_once(values, changes, said):
    values["judge"] |= changes
    with pytest.raises(ConfigError, match=said):
        validate_config(values)


def test_a_second_judge_is_the_first_with_keys_laid_over(values):
    values["judge"] |= HOSTED
    values["audit"]["second_judge"] = {"backend": "likelihood", "thresholds": [0.0, 1.0]}
    config = validate_config(values)
    assert (config.second_judge.model, config.second_judge.thresholds) == (None, [0.0, 1.0])
    assert config.judge.decides["model"] == "claude-haiku-5-5"
    values["audit"]["second_judge"] = {"modell": "x"}
    with pytest.raises(ConfigError, match=r"audit\.second_judge\.modell: "):
        validate_config(values)


def test_misspelt_section_and_missing_key(values):
    values["generaton"] = values.pop("generation")
    del values["model"]["path"]
    with pytest.raises(ConfigError) as error:
        validate_config(values, [DEFAULT])
    assert "generaton: unknown key; did you mean 'generation'?" in str(error.value)
    assert "model.path: missing" in str(error.value)


@pytest.mark.parametrize(
    "path", ["pypi:somewhere", "pypi:a==1#b.gguf", "pypi:a==1#b.gguf;sha256=0"]
)
def test_packaged_model_must_be_pinned_and_hashed(values, path):
    values["model"]["path"] = path
    with pytest.raises(
        ConfigError, match=r"model\.path: found 'pypi:.*is pinned as pypi:<package>"
    ):
        validate_config(values)


def test_command_line_value_is_named_by_the_last_file_or_config():
    with pytest.raises(ConfigError, match=r"^config: shards: "):
        validate_config({"model": {"name": "a", "path": "b"}, "shards": 0})


def test_code_defaults_need_only_a_model():
    config = Config.model_validate({"model": {"name": "a", "path": str(Path("some/id"))}})
    assert not config.model.must_be_fetched
    assert config.generation.max_new_tokens == 512
