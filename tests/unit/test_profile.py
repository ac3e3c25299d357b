"""The Slurm profile knows every rule: Snakemake ignores a misspelt name without a word."""

import re

import yaml
from conftest import ROOT

PROFILE = yaml.safe_load((ROOT / "config" / "profiles" / "slurm" / "config.yaml").read_text())
GROUPS = dict(entry.split("=") for entry in PROFILE["groups"])
# a rule's name -> its text
RULES = {
    text.split(":", 1)[0]: text
    for path in (ROOT / "rules").glob("*.smk")
    for text in re.split(r"^ *rule ", path.read_text(), flags=re.M)[1:]
}
MODEL_RULES = {name for name, text in RULES.items() if "gpu=" in text}
# each draws one thing from the last step, so it would gain nothing
ALONE = {"plot_trajectories"}


def test_rules_that_run_the_model_go_to_the_gpus():
    assert set(PROFILE["set-resources"]) == MODEL_RULES
    partitions = {rule["slurm_partition"] for rule in PROFILE["set-resources"].values()}
    assert partitions == {"gpu"}  # one line to edit


def test_every_other_rule_is_in_a_group_or_runs_where_snakemake_does():
    here = {name for name, text in RULES.items() if "localrule: True" in text}
    assert here == {"fetch_model", "ask_judge"}
    assert set(GROUPS) == set(RULES) - MODEL_RULES - here - ALONE
