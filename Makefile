# Every target sets up what it needs in .venv. `make report PRESET=smoke` runs another preset, PROCESSES=2 trains each
# adapter on two GPUs, and PROFILE=profiles/slurm submits the jobs to a cluster.
PRESET ?= quick
CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin
HERE = --cores $(CORES) --resources gpu=$$($(BIN)/python -m stage1.machine.gpus)
SNAKEMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" snakemake $(if $(PROFILE),--profile $(PROFILE),$(HERE)) \
	--nolock --rerun-incomplete --quiet progress

.PHONY: env report test full clean

env: .venv/made

.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]' && touch $@

report: env
	$(SNAKEMAKE) --config preset=$(PRESET) $(if $(PROCESSES),processes=$(PROCESSES))

test: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pytest -n 2 --dist loadfile

# Renders reports/full/ and figures/ from the committed records, adapters included: no GPU, nothing is trained.
full: env
	$(SNAKEMAKE) --config preset=full seeds=1
	cp runs/full/figures/* figures/

clean:
	rm -rf .venv runs .snakemake *.egg-info .ruff_cache
