# On a machine with Python 3.11 or later, git and make: `make demo` and `make test` do all the set-up themselves.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
SEED ?= 7
SEEDS ?= 5000
FUZZ_MINUTES ?= 60
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SUPPLY := $(VENV)/supply
UPGRADE ?=

.PHONY: help demo test test-all chaos simulate fuzz mutate bench bench-queue screenshots lint messages lock audit clean

help:
	@echo "make demo      download from the stand-in site into Download/demo, offline"
	@echo "make test      the tests that need nothing but Python"
	@echo "make test-all  lint, types, and the tests that are slow or need more (a browser, root)"
	@echo "make chaos     a farm of real processes under a nemesis, then the accounting (SEED=7)"
	@echo "make simulate  thousands of seeded faults in virtual time (SEEDS=5000)"
	@echo "make fuzz      requests and files that nobody thought of, for hours (FUZZ_MINUTES=60)"
	@echo "make mutate    break the product on purpose, and see that the tests notice"
	@echo "make bench     measure this downloader beside others; see docs/performance.md (BENCH_ARGS=--quick)"
	@echo "make bench-queue  measure the queue server beside others; see docs/scale.md (BENCH_ARGS=--quick)"
	@echo "make screenshots  the pictures of the dashboard, from a farm on this machine (needs Chromium)"
	@echo "make messages  bring the Chinese catalogue up to date with the sentences in the code"
	@echo "make lock      requirements*.in to requirements*.txt, with hashes, over the network (UPGRADE=yes: the newest)"
	@echo "make audit     what is known against the packages: the list of this project, and online where that is possible"
	@echo "make clean     remove the virtual environment and the caches"

demo: $(VENV)/runtime
	@$(BIN)/python -m demo.run_demo

test: $(VENV)/development
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/development lint
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then sh tests/install_debian_packages.sh; fi
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m slow $(PYTEST_ARGS)

chaos: $(VENV)/development
	$(BIN)/python -m tests.chaos --seed $(SEED)

simulate: $(VENV)/development
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

fuzz: $(VENV)/development
	$(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

mutate: $(VENV)/development
	$(BIN)/python -m tests.mutations

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-queue: $(VENV)/bench
	$(BIN)/python -m benchmarks.queue $(BENCH_ARGS)

screenshots: $(VENV)/development
	$(BIN)/python -m tests.screenshots

lint: $(VENV)/development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

messages: $(VENV)/development
	$(BIN)/python locales/messages.py

lock: $(SUPPLY)/ready
	$(SUPPLY)/bin/python -m tests.supply.lock $(if $(UPGRADE),--upgrade)

audit: $(SUPPLY)/ready
	@$(SUPPLY)/bin/python -m tests.supply.audit

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/development: $(VENV)/runtime requirements-deliver.txt requirements-dev.txt
	@$(PIP) -r requirements-dev.txt
	@touch $@

# Apart from the others, so that what makes and checks the lock is not among what it locks.
$(SUPPLY)/ready: $(VENV)/runtime requirements-supply.txt
	@$(BIN)/python -m venv $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-supply.txt
	@touch $@

$(VENV)/bench: $(VENV)/development requirements-bench.txt
	@$(PIP) -r requirements-bench.txt
	@touch $@
