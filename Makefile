# `make demo` and `make test` need nothing but Python 3.11 to 3.13 and a package
# registry: they make `.venv` and reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-slow test-kills lint format clean

demo: $(VENV)/.installed ## Train, distil, export and serve on real digits: 5 minutes
	$(BIN)/keras-hsakd demo --overwrite

test: $(VENV)/.installed ## All tests on TensorFlow, then the core's on JAX
	$(BIN)/python -m pytest -n 2 --dist worksteal
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 --dist worksteal -m "core and not slow"

test-slow: $(VENV)/.installed ## The tests that take minutes
	$(BIN)/python -m pytest -m slow

test-kills: $(VENV)/.installed ## Trainings killed at 20 random moments go on: 15 minutes
	$(BIN)/python tests/kill_and_resume.py --moments 20

lint: $(VENV)/.installed ## Style, as CI checks it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,cv,jax,dev]'
	touch $@
