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

full:
	$(MAKE) report PRESET=full

clean:
	rm -rf .venv runs .snakemake *.egg-info .ruff_cache
