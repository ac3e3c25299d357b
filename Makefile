# Two commands do all: `make axis` and `make test`. Both set up .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
CORES ?= all
ARGS ?=

.PHONY: axis test test-vllm test-slurm lint fmt report pins clean help
.DEFAULT_GOAL := help

.venv/.ready: envs/requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # Python 3.11's own takes three times as long
	$(BIN)/python -m pip install --quiet --requirement envs/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

axis: .venv/.ready  ## compute the Assistant Axis (the default config, or ARGS="--configfile my.yaml")
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete $(ARGS)

test: .venv/.ready  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

.venv-vllm/.ready: envs/requirements-vllm.txt pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet $$(grep ^torch== $<)
	.venv-vllm/bin/python -m pip install --quiet --no-compile --no-deps --requirement $<
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-vllm: .venv-vllm/.ready  ## run the tests of the engine vllm, on the CPU, in an environment of its own
	OMP_WAIT_POLICY=PASSIVE .venv-vllm/bin/python -m pytest --durations 8 tests/vllm

SLURM_PACKAGES := slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
test-slurm: .venv/.ready  ## run the tests on Slurm, brought up on this machine (Debian, as root)
	command -v slurmctld > /dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $(SLURM_PACKAGES) > /dev/null; }
	AXISKIT_TEST_SLURM=1 tests/slurm/with_slurm.sh $(BIN)/python -m pytest tests/slurm

lint: .venv/.ready  ## style, workflow lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

fmt: .venv/.ready  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

report: .venv/.ready  ## report.html with all figures
	$(BIN)/snakemake --report report.html $(ARGS)

pins: .venv/.ready  ## pin what is installed in .venv
	{ echo "# What make installs: every package pinned. Written by 'make pins'; pyproject.toml has the ranges."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > envs/requirements.txt

clean:  ## remove .venv, .venv-vllm and caches; results/ stays
	rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12
