# Two commands need nothing but Python and make: `make train` and `make test`.
#   make train ALGO=maac ENV=Hopper-v4 STEPS=30000
ALGO = maac
ENV = InvertedPendulum-v4
# Empty: the number in hyperparams/$(ALGO).yml
STEPS = 5000

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
LOGS = logs
# On networks as small as these, a second thread costs more than it brings
THREADS = 1
export OMP_NUM_THREADS = $(THREADS)

INSTALLED = $(VENV)/.installed
ENJOY = -m rl_zoo3.enjoy --algo $(ALGO) --env $(ENV) -f $(LOGS)

.PHONY: help install train test test-expensive lint format type check clean

help:
	@echo "make train [ALGO=maac] [ENV=InvertedPendulum-v4] [STEPS=5000]   install and train an agent through rl_zoo3"
	@echo "make test             install and run the tests"
	@echo "make test-expensive   the learning runs and other slow tests"
	@echo "make check            lint, types and tests: what CI runs"
	@echo "make format           let ruff rewrite the code"

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml zoo_plugins/startup/*
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=/path/to/it")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-build-isolation -e ".[zoo,mujoco,tests]"
	touch $@

train: $(INSTALLED)
	$(BIN)/python -m rl_zoo3.train --algo $(ALGO) --env $(ENV) $(if $(STEPS),-n $(STEPS)) -f $(LOGS) -P \
		--eval-freq 1000 --eval-episodes 5 --num-threads $(THREADS)
	@echo "--- The trained agent, without exploration:"
	$(BIN)/python $(ENJOY) --no-render -n 5000
	@echo "--- Saved in $(LOGS)/$(ALGO)/. To watch the agent:"
	@echo "$(BIN)/python $(ENJOY)"

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-expensive: $(INSTALLED)
	$(BIN)/python -m pytest -m expensive

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(INSTALLED)
	$(BIN)/mypy

check: lint type test

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
