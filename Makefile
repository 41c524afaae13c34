# Everything a person types. Needs python3 (>= 3.11) and make; uses uv when it is there.

VENV := .venv
PY := $(VENV)/bin/python
VENV_REAL := .venv-real
# torch installs on fewer interpreters than this project does.
PYTHON_REAL ?= python3.11
RUN := runs/tiny-olmoe/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-real verbose-test bench lint format clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.base  ## set up, run the three scripts on the example checkpoint, show the results
	$(PY) scripts/init_run.py --root runs --model-id tiny-olmoe --run-name demo --model-path examples/tiny_olmoe
	$(PY) scripts/collect_data.py --run-dir $(RUN)
	$(PY) scripts/build_tables.py --run-dir $(RUN)
	$(PY) examples/five_numbers.py $(RUN)

test: lint  ## set up, then lint, types, import contracts, and the tests with coverage
	$(PY) -m pytest --cov --cov-report=term

test-real: $(VENV_REAL)/.real  ## hold the readings against other people's models and writers (torch; minutes)
	HF_HUB_OFFLINE=1 $(VENV_REAL)/bin/python -m pytest tests/real -q --capture=sys --override-ini=filterwarnings=default --override-ini=addopts=

verbose-test: $(VENV)/.test  ## the tests by unittest, one line each
	$(PY) -m unittest discover -s tests -t . -v

bench: $(VENV)/.base  ## measure speed and memory on data made here; minutes, about 10 GB of disk
	$(PY) benchmarks/run.py

lint: $(VENV)/.test  ## style, types, import contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.test  ## rewrite the code in the house's layout
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment and caches, never runs/
	rm -rf $(VENV) $(VENV_REAL) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage

$(VENV)/.base: pyproject.toml scripts/setup_venv.sh
	sh scripts/setup_venv.sh $(VENV)
	@touch $@

$(VENV)/.test: pyproject.toml scripts/setup_venv.sh
	sh scripts/setup_venv.sh $(VENV) test
	@touch $@ $(VENV)/.base

$(VENV_REAL)/.real: pyproject.toml scripts/setup_venv.sh
	PYTHON=$(PYTHON_REAL) sh scripts/setup_venv.sh $(VENV_REAL) real
	@touch $@
