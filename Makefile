# The targets need nothing but Python 3.11 to 3.13 and a package registry: they make
# `.venv` and reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# In two processes; a module stays in one, but for what the other takes at the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations=25
# Those that have a test which runs on JAX, too.
CORE = $(shell grep -l 'mark\.core' tests/test_*.py)
# What is checked before each commit: no training of more than a few steps.
FASTEST := $(addprefix tests/test_, $(addsuffix .py, checkpoints compat data export \
	files heads layers losses ops optimizers package runs views))
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help demo docs check test test-slow test-kills test-mutants release-check zoo \
	lint format wheel clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## Train, distil, export and serve on real digits: 5 minutes
	$(BIN)/keras-hsakd demo --overwrite

docs: $(VENV)/.installed-docs ## The site, into build/site; warnings are errors: 20 seconds
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site

check: lint ## Style and the fastest tests, before each commit: 1 minute
	$(PYTEST) $(FASTEST)

test: $(VENV)/.installed ## All tests on TensorFlow, then the core's on JAX: 9 minutes
	$(PYTEST)
	KERAS_BACKEND=jax $(PYTEST) -m "core and not slow" $(CORE)

test-slow: $(VENV)/.installed-slow ## The tests that take minutes
	$(PYTEST) -m slow
	KERAS_BACKEND=jax $(PYTEST) -m slow tests/test_jax_workers.py

test-kills: $(VENV)/.installed ## Trainings killed at 20 random moments, all else at all
	$(BIN)/python tests/kill_and_resume.py --moments 20
	$(BIN)/python tests/killed_writers.py

test-mutants: $(VENV)/.installed ## Plant faults; name those that no test notices
	$(BIN)/python tests/mutants.py

wheel: $(VENV)/.installed ## The package as a file, into dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

release-check: $(VENV)/.installed ## The wheel, without extras, in fresh environments
	$(BIN)/python tests/release_check.py

zoo: $(VENV)/.installed ## What the networks cost, counted: keras_hsakd/zoo.json
	$(BIN)/python benchmarks/zoo.py

lint: $(VENV)/.installed ## Style, as CI checks it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed ## Mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what these targets made
	rm -rf $(VENV) demo build dist docs/api *.egg-info

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,jax,dev]'
	touch $@

# keras-cv has backbones that slow tests attach heads to; formats of export are loaded
# by their own runtimes.
$(VENV)/.installed-slow: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[cv,export,serving]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
