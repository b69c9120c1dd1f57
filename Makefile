# make run: from nothing to the main job's table. make test: the tests. Both build .venv from requirements.lock.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
QUICK := results/quickstart
# What `make tune`, `make reference` and `make tables` go through, with the trials for each method.
BUDGETS := altlora_glue:5 adaptertune_transfer:5 lora_e2e:3 adaprelora_e2e:3 altlora_gsm8k:3 lora_sb_glue:3 \
  dct_adamw_lm:3 switchlora_lm:3 lost_lm:3 noble_lm:3 gdnet_depth:3 muon_nesterov_lm:3 psec_d4rl:3 s4_lra:3
# With the rates of another one.
UNTUNED := ptd_lra ptd_robustness psec_shift
SWEEPS := $(foreach pair,$(BUDGETS),$(firstword $(subst :, ,$(pair)))) $(UNTUNED)
# Two test processes with one computing thread each use two cores best.
export TOKENIZERS_PARALLELISM := false

.PHONY: run test test-slow lint setup tune reference tables lock benchmark clean help
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

tune: setup  ## the tuned values below conf/tuned (hours on 2 cores, resumable)
	for pair in $(BUDGETS); do $(BIN)/python -m lrx tune $${pair%:*} budget=$${pair#*:} || exit; done

reference: setup  ## the tracked tables below results/reference (hours on 2 cores, resumable)
	for sweep in $(SWEEPS); do \
	  $(BIN)/python run.py +sweeps=$$sweep && \
	  $(BIN)/python -m lrx table $$sweep --out results/reference/$$sweep --save-records --quiet && \
	  $(BIN)/python -m lrx bundle $$sweep --out results/reference/$$sweep/bundle.zip || exit; done

tables: setup  ## all tables into results/tables, from the tracked bundles where there is one, else from own records
	for sweep in $(SWEEPS); do bundle=results/reference/$$sweep/bundle.zip; \
	  $(BIN)/python -m lrx table $$sweep --quiet --out results/tables/$$sweep $$(test -f $$bundle && echo "--records $$bundle") || exit; done

benchmark: setup  ## step times, generation and image loading against plain loops; overhead of sweeps, speed of the desk
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.sweeps

lock:  ## resolve requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra mini --extra hub --extra tensorboard --extra rl --extra slurm --extra dev --universal --python-version 3.11 --constraint constraints.txt \
	  --generate-hashes --no-annotate --no-emit-index-url --quiet --output-file requirements.lock

clean:  ## remove what was built; records and results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
