# Every target sets up the environment in .venv first. Options of `make report`: PRESET=smoke runs another preset,
# PRESET=my.yaml one of your own, PROCESSES=2 trains each adapter on two GPUs, PROFILE=profiles/slurm submits the jobs
# to a cluster.
PRESET ?= quick
CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin
HERE = --cores $(CORES) --resources gpu=$$($(BIN)/python -m stage1.machine.gpus)
SNAKEMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" snakemake $(if $(PROFILE),--profile $(PROFILE),$(HERE)) \
	--nolock --rerun-incomplete --quiet host
# One file, one worker, in the order of collection: tests of a file share what they prepare, and slow files come first.
PYTEST = $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: env report lab test fast full clean

env: .venv/made

.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]' && touch $@

report: env
	@$(SNAKEMAKE) --config preset=$(PRESET) $(if $(PROCESSES),processes=$(PROCESSES))

# JupyterLab at the repository's root. LAB=--no-browser is for a machine without a screen.
lab: .venv/lab
	$(BIN)/jupyter lab $(LAB)

.venv/lab: .venv/made
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]' && touch $@

test: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(PYTEST)

# Without the tests marked slow.
fast: env
	$(PYTEST) -m "not slow"

# Render reports/full/ and figures/ from the committed records and adapters. Nothing is trained; no GPU is needed.
full: env
	$(SNAKEMAKE) --config preset=full seeds=1
	cp runs/full/figures/* figures/

clean:
	rm -rf .venv runs build .snakemake *.egg-info .ruff_cache .mypy_cache
