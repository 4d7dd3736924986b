# Every target sets up what it needs in .venv. `make report PRESET=smoke` runs another preset.
PRESET ?= quick
CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env report test full clean

env: .venv/made

.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]' && touch $@

report: env
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES) --nolock --rerun-incomplete --quiet progress --config preset=$(PRESET)

test: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pytest -n 2 --dist loadfile

# Renders reports/full/ and figures/ from the committed records, adapters included: no GPU, nothing is trained.
full: env
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES) --nolock --rerun-incomplete --quiet progress --config preset=full seeds=1
	cp runs/full/figures/* figures/

clean:
	rm -rf .venv runs .snakemake *.egg-info .ruff_cache
