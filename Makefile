# Everything from nothing but Python 3.11 to 3.13 and make, in .venv; `make help` lists the rest.
# ARGS is handed on: make serve ARGS='--grpc 0.0.0.0:8980', make test ARGS='tests/api -x'.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that share the tests.
JOBS ?= auto

# Of all that PATH has: in range, with what a venv needs, and the fastest. Builds of one version
# differ by half as much again (a distribution's is optimised by profile, a version manager's is
# often not), and every request feels it. PYTHON=… overrides.
PYTHON ?= $(shell config/python)

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help setup serve test lint format bench torture clients upstream prometheus page deploy-lint lock

help: ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Set up .venv: locked dependencies, the project itself, generated modules.

serve: setup ## Serve from ~/.cache/cas, or CAS_DIR, on 127.0.0.1.
	exec $(BIN)/cas serve $(ARGS)

test: setup ## The test suite.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: setup ## Style, types and the direction of imports.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Bring the sources into the style that lint wants.
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: setup ## Benchmarks; ARGS=--help tells which.
	$(BIN)/python -m benchmarks $(ARGS)

torture: setup ## Kills under load (ARGS='--seconds 3600 --seed 7') and an audit; a million hostile calls.
	$(BIN)/python -m tests.torture $(ARGS)
	$(BIN)/python -m tests.fuzz

clients: setup ## Install real clients, drive them against a server; CLIENTS='…' picks.
	tests/clients/setup
	tests/clients/run $(ARGS)

upstream: setup ## Nodes over one bucket of real object stores (s3proxy, Azurite), and in front of a server; all are killed. Needs Java and Maven.
	tests/upstream/setup
	tests/upstream/run

prometheus: setup ## promtool and a real Prometheus against a loaded server.
	tests/prometheus/setup
	tests/prometheus/run

page: setup ## The page at / in Debian's Chromium, which is installed if need be.
	tests/page/setup
	tests/page/run $(ARGS)

deploy-lint: setup ## Linters and schemas, of what deploy/ has.
	tests/prometheus/setup
	tests/deploy/setup
	tests/deploy/run

lock: setup ## Take the newest versions that pyproject.toml allows into requirements.lock.
	$(PIP) install --quiet 'uv>=0.5,<1'
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev \
		--generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
		--output-file requirements.lock pyproject.toml

# In two steps, so that a change of pyproject.toml alone does not install everything again.
$(VENV)/.locked: requirements.lock
	python='$(PYTHON)' && $${python:?no Python 3.11 to 3.13 with venv and ensurepip on PATH} \
		-m venv $(VENV)
	$(PIP) install --quiet --require-hashes --requirement requirements.lock
	touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml protos/build_hook.py $(wildcard protos/cas/pb/*.proto)
	$(PIP) install --quiet --no-deps --editable .
	touch $@
