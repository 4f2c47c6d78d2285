# The commands for developers. Needs Python 3.11 or newer, and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --require-hashes -r

# Whether .venv works: it was created in this folder, its Python exists and is new enough, and it has pip.
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
WORKS := $(shell grep -qsF "$(CURDIR)/.venv" $(BIN)/activate && $(BIN)/python -c 'import pip; $(SUPPORTED)' 2>/dev/null && echo yes)

.PHONY: help run install environment reset test quick coverage unmeasured lint fuzz soak lock bench docker clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: install  ## Serve on http://127.0.0.1:8000 with an embedded PostgreSQL
	@exec $(BIN)/recon serve

install: .venv/runtime  ## Create .venv with recon in it (.venv/bin/recon)

reset: install  ## Delete the data of the embedded PostgreSQL, which `make run` uses
	@$(BIN)/recon reset --yes

# Most tests wait for programs that they start, so more run at once than a small machine has cores.
PROCESSES ?= 3
PARALLEL := --numprocesses=$(PROCESSES) --dist=worksteal
# Files to test, or other options of pytest; all files unless given.
TESTS ?=
test: .venv/dev  ## Run the whole test suite on a real PostgreSQL
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

# No fault injection, no browser, few processes.
QUICK := tests/rules tests/sql tests/api tests/cli/test_options.py \
	$(patsubst %,tests/identities/test_%.py,batching races_shown row_queues) \
	$(patsubst %,tests/database/test_%.py,schema transactions) \
	$(patsubst %,tests/http/test_%.py,access endpoints errors raw_requests responses) $(patsubst %,tests/test_%.py,dsn logs) \
	tests/project/test_layers.py
quick: .venv/dev  ## Run the tests that need less than a minute, on the embedded PostgreSQL
	RECON_TEST_POSTGRES=embedded $(BIN)/python -m pytest $(PARALLEL) $(QUICK)

# What `make coverage` leaves out: it needs to be run only once, whatever the server, since it brings a PostgreSQL of its
# own or needs none; and there are figures in it that measuring would change: of time, of memory, of files.
UNMEASURED := tests/cluster tests/project tests/database/test_other_users.py \
	$(patsubst %,tests/reliability/test_%.py,batches crowds faults feed fuzz history_orders overload soak \
	steward_faults)
# Packages of which every line and branch is tested. The rest starts programs and meets failures of the system.
COMPLETE := recon/identities/*,recon/rules/*,recon/sql/*
coverage: .venv/dev  ## Run most of the test suite, measure its coverage of recon/, and fail if that is too low
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) $(patsubst %,--ignore=%,$(UNMEASURED)) $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --fail-under=100 --include='$(COMPLETE)'

unmeasured: .venv/dev  ## Run the tests that `make coverage` leaves out
	$(BIN)/python -m pytest $(PARALLEL) $(UNMEASURED)

lint: .venv/dev  ## Check style, types, layers and security
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml recon

# Seconds for each of its two halves.
FUZZ_SECONDS ?= 300
fuzz: .venv/dev  ## Fuzz the API and the socket for ten minutes (FUZZ_SECONDS=300 twice)
	RECON_TEST_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest --capture=no tests/reliability/test_fuzz.py

# Approximate duration; SOAK_MINUTES=1 for a trial. SOAK_OPTIONS=--publish writes the figures to docs/.
SOAK_MINUTES ?= 10
soak: .venv/dev  ## Load, fault injection, overload and fuzzing for ten minutes, with a check of every answer
	$(BIN)/python -m tests.harness.soak --minutes $(SOAK_MINUTES) $(SOAK_OPTIONS)

lock: .venv/dev  ## Write the lock files with the newest versions of all dependencies
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade --python-version 3.11 \
		--extra build --output-file requirements.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade --python-version 3.11 \
		--extra build --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml

bench: .venv/dev  ## Measure recon beside the raw database (an hour; needs wrk)
	$(BIN)/python -m bench

# For the labels of the images.
LABELS = --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	--build-arg REVISION=$(or $(shell git rev-parse HEAD 2>/dev/null),unknown) --build-arg SOURCE=$(or $(shell git config --get remote.origin.url),unknown)
docker:  ## Build the images recon (with the embedded PostgreSQL) and recon:slim
	docker build --tag recon $(LABELS) --target trial .
	docker build --tag recon:slim $(LABELS) --target slim .

clean:  ## Remove what the other commands created (not the data)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* dist

VERSION = $(or $(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null),not there)
TOO_OLD = recon needs Python 3.11 or newer, and $(PYTHON) is $(VERSION). \
	Install a newer one and name it, for example: make PYTHON=python3.12
NO_VENV = $(PYTHON) cannot create a virtual environment. On Debian and Ubuntu: apt install python3-venv
# $(error) prints one line, without a second line about the failed recipe.
environment:
	$(if $(shell $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null && echo yes),,$(error $(TOO_OLD)))
	$(if $(shell $(PYTHON) -c 'import ensurepip, venv; ensurepip.version()' 2>/dev/null && echo yes),,$(error $(NO_VENV)))
	@rm -rf .venv
	@$(PYTHON) -m venv .venv

# Each stamp file has the time of the installation, so a second run has nothing to do.
.venv/runtime: requirements.txt pyproject.toml $(if $(filter yes,$(WORKS)),,environment)
	@echo "recon: installing into .venv (once, about a minute)"
	@$(INSTALL) requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: .venv/runtime requirements-dev.txt
	@echo "recon: installing the developers' tools"
	@$(INSTALL) requirements-dev.txt
	@touch $@
