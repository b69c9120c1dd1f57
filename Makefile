# make run: from nothing to the main job's table. make test: the tests. Both build .venv from requirements.lock.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
QUICK := results/quickstart
# Two test processes with one computing thread each use two cores best.
export TOKENIZERS_PARALLELISM := false

.PHONY: run test test-slow lint setup tune reference lock benchmark clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

setup: $(VENV)/.installed  ## build .venv and fetch embedded data and small pretrained models
	@$(BIN)/python -m lrx fetch

run: setup  ## train head, lora and altlora on real text and print the table
	$(BIN)/python run.py +sweeps=altlora_glue method=head,lora,altlora seed=0 paths.root=$(QUICK)
	$(BIN)/python -m lrx table altlora_glue method=head,lora,altlora seed=0 --root $(QUICK)

test: setup  ## oracles, contract tables, command line, faults (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: setup  ## kill loops and whole runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tune: setup  ## the tuned values below conf/tuned (about an hour on 2 cores, resumable)
	$(BIN)/python -m lrx tune altlora_glue budget=5 jobs=2

reference: setup  ## the tracked tables below results/reference (about half an hour on 2 cores, resumable)
	$(BIN)/python run.py +sweeps=altlora_glue jobs=2
	$(BIN)/python -m lrx table altlora_glue --out results/reference/altlora_glue --save-records
	$(BIN)/python -m lrx bundle altlora_glue --out results/reference/altlora_glue/bundle.zip

benchmark: setup  ## step times, generation and image loading against plain loops; overhead of sweeps, speed of the desk
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.sweeps

lock:  ## resolve requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra mini --extra hub --extra tensorboard --extra slurm --extra dev --universal --python-version 3.11 --constraint constraints.txt \
	  --generate-hashes --no-annotate --no-emit-index-url --quiet --output-file requirements.lock

clean:  ## remove what was built; records and results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
