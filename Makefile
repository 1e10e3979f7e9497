# nano3: `make quickstart` and `make test` are all that a fresh machine needs (Linux, Python 3.12 or later, PyPI).
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-slurm test-installs lint prep-small docs site bench bench-data bench-launch slurm-up slurm-down

# uv: the one on the PATH when it runs, else a private one from PyPI in .uv/.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
RUN := $(UV) run --frozen --extra train
# Some images forbid Python to keep compiled modules; without them each of the many starts here takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/python -m pip install --quiet 'uv>=0.9'

setup: $(filter .uv/%,$(UV)) ## Install everything for CPU training and tests into .venv
	@$(UV) sync --frozen --extra train --quiet

quickstart: setup ## Tokenize the bundled corpus, train a tiny hybrid model on the CPU, show the result
	@$(RUN) python -m nano3.data_prep data_blend=sample output_dir=output/nano3/sample
	@$(RUN) python -m nano3.pretrain +experiment=quickstart

prep-small: setup ## Prepare the mathematics-only blend from the Hugging Face hub (1,000,000 rows of each dataset)
	@$(RUN) python -m nano3.data_prep data_blend=math sample=1000000

test: setup ## Unit and integration tests, seven to ten minutes on two cores
	@$(RUN) pytest -n 2 --dist loadfile

test-slow: setup ## Tests that take minutes: interrupted runs, large files, other numbers of ranks
	@$(RUN) pytest -n 2 --dist loadfile -m 'slow and not slurm and not gpu'

test-slurm: setup slurm-up ## Launching, on the Slurm that slurm-up starts
	@. .slurm/env.sh && $(RUN) pytest -m 'slurm and not gpu'

test-installs: $(filter .uv/%,$(UV)) ## The wheel without the lock: oldest and newest dependencies, Python 3.12 and 3.13
	@.ci/installs

lint: setup ## Ruff and mypy
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

site: setup ## Build the documentation site into output/site
	@NO_MKDOCS_2_WARNING=1 $(UV) run --frozen --isolated --only-group docs mkdocs build --quiet

docs: setup ## Run every command of README.md and docs/
	@$(RUN) pytest -m '' tests/test_docs.py

slurm-up: ## A real Slurm of two nodes on this machine, from Debian's packages (root); then `. .slurm/env.sh`
	@tests/slurm/devcluster.sh up .slurm --pyxis

slurm-down: ## Stop it
	@tests/slurm/devcluster.sh down .slurm

bench-launch: setup slurm-up ## Seconds from the command to a Slurm job id, against its peers
	@. .slurm/env.sh && $(RUN) python benchmarks/launch/bench.py

bench: bench-data bench-launch ## All benchmarks that run without a GPU

bench-data: setup ## Data preparation against its peers on 1 GB of text; results in benchmarks/results
	@$(RUN) python benchmarks/data/bench.py
