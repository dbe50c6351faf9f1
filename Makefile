# Needs python3 (3.11 or later), pip and make; fetches everything else from the package index, locked by hashes.

PYTHON ?= python3
UV := .tools/bin/uv
BIN := .venv/bin

# A machine's own Pythons only: uv must fetch none. Warnings about a cache on another file system are no news to anybody.
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= copy

CHECKED := packages tests examples benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all checks unit proof chaos soak bench bench-quick bench-peers bench-growth audit lock format clean

help:
	@echo "make setup         set up .tools and .venv (done by all others when needed)"
	@echo "make demo          post 2,000 orders, kill workers on the way, count what came of it"
	@echo "make test          formatting, lint, import contracts, types, and every test on PostgreSQL 18"
	@echo "make test-all      the same, and the tests with a database on PostgreSQL 16 as well"
	@echo "make proof         what is promised, under every fault we can bring about: all interleavings and crash points"
	@echo "make chaos         the same with processes killed, servers crashed and cut off, under load (alone on the machine)"
	@echo "make soak          twenty minutes of everything (KEDGE_PROOF_MINUTES=480 for a night)"
	@echo "make bench         runs/s, steps/s, starts/s, latencies, memory, beside their goals (by hand, never a test)"
	@echo "make bench-quick   shares of plain loops, compared with the last ones (under two minutes)"
	@echo "make bench-peers   kedge beside DBOS, Absurd, Procrastinate and PgQueuer (an hour, or in parts)"
	@echo "make bench-growth  the same beside 500,000 finished and 100,000 waiting runs, and an old snapshot"
	@echo "make audit         known faults in what is locked, and its bills of materials in dist/ (asks the network)"
	@echo "make lock          renew requirements/*.txt"
	@echo "make format        format and fix what can be fixed"

# Each step leaves a stamp, so that a repeated call costs nothing and a changed lock file costs one step.
setup: .venv/packages.stamp
	@:

.tools/uv.stamp: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "kedge needs Python 3.11 or later; this one is " + sys.version.split()[0] + ". Point to another: make PYTHON=python3.12 ...")'
	@echo "==> uv into .tools"
	@# The machine's pip installs into the environment, because Debian's venv comes without one.
	@$(PYTHON) -m venv --without-pip .tools
	@$(PYTHON) -m pip --python .tools/bin/python install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/requirements.stamp: .tools/uv.stamp requirements/dev.txt
	@echo "==> locked environment into .venv"
	@test -x $(BIN)/python || $(UV) venv -q --python "$$(command -v $(PYTHON))" .venv
	@$(UV) pip install -q -p $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

.venv/packages.stamp: .venv/requirements.stamp $(wildcard packages/*/pyproject.toml)
	@echo "==> kedge, kedge-client and kedge-worker, editable"
	@$(UV) pip install -q -p $(BIN)/python --no-deps --no-build-isolation $(foreach p,shared client worker,-e packages/$(p))
	@touch $@

demo: setup
	@$(BIN)/python -m examples.orders.demo

test: checks
	@echo "==> tests on PostgreSQL 18"
	@KEDGE_TEST_POSTGRES=18 $(BIN)/pytest -q -n 2 --dist worksteal

test-all: test
	@echo "==> tests with a database on PostgreSQL 16"
	@KEDGE_TEST_POSTGRES=16 $(BIN)/pytest -q -n 2 --dist worksteal tests/integration tests/scenarios tests/contract

checks: setup
	@echo "==> formatting"
	@$(BIN)/ruff format --check $(CHECKED)
	@echo "==> lint"
	@$(BIN)/ruff check $(CHECKED)
	@echo "==> import contracts"
	@$(BIN)/lint-imports --no-cache
	@echo "==> pyright"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	@echo "==> mypy"
	@$(BIN)/mypy

# The tests without a database: seconds, while writing.
unit: setup
	@$(BIN)/pytest -q tests/unit

proof: setup
	@KEDGE_PROOF=full $(BIN)/pytest -q -n 2 --dist worksteal -o faulthandler_timeout=600 tests/proof

chaos: setup
	@KEDGE_PROOF=chaos $(BIN)/pytest -v -o faulthandler_timeout=900 tests/proof/chaos

soak: setup
	@KEDGE_PROOF=soak $(BIN)/pytest -v -o faulthandler_timeout=0 tests/proof/soak

bench: setup
	@$(BIN)/python -m benchmarks.run

# QUICK="--strict": fails if a share has fallen by more than the noise.
bench-quick: setup
	@$(BIN)/python -m benchmarks.quick $(QUICK)

bench-growth: setup
	@$(BIN)/python -m benchmarks.growth

# An environment of their own: what they install is none of ours.
.venv-peers/requirements.stamp: .tools/uv.stamp requirements/peers.txt
	@echo "==> other engines into .venv-peers"
	@test -x .venv-peers/bin/python || $(UV) venv -q --python "$$(command -v $(PYTHON))" .venv-peers
	@$(UV) pip install -q -p .venv-peers/bin/python --require-hashes -r requirements/peers.txt
	@touch $@

# In parts: PEERS="--only one ten --repetitions 1". What .bench/peers.json has is not measured again.
bench-peers: setup .venv-peers/requirements.stamp
	@KEDGE_PEERS_PYTHON=$(CURDIR)/.venv-peers/bin/python $(BIN)/python -m benchmarks.peers.compare $(PEERS)

# Tools of its own: what looks at the locked environment must not stand in it.
.audit/requirements.stamp: .tools/uv.stamp requirements/audit.txt
	@echo "==> pip-audit and cyclonedx-py into .audit"
	@test -x .audit/bin/python || $(UV) venv -q --python "$$(command -v $(PYTHON))" .audit
	@$(UV) pip install -q -p .audit/bin/python --require-hashes -r requirements/audit.txt
	@touch $@

AUDITED := worker api dev uv audit

# --strict: a package about which nothing could be learned is no package without faults.
audit: .audit/requirements.stamp
	@mkdir -p dist
	@echo "==> bills of materials: $(foreach set,worker api,dist/sbom-$(set).json)"
	@for set in worker api; do \
		SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .audit/bin/cyclonedx-py requirements requirements/$$set.txt \
			--output-reproducible --of JSON -o dist/sbom-$$set.json || exit 1; \
	done
	@echo "==> known faults of: $(foreach set,$(AUDITED),requirements/$(set).txt)"
	@faults=0; unknown=0; for set in $(AUDITED); do \
		said=$$(.audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
			-r requirements/$$set.txt 2>&1) && echo "$$set: no known faults" && continue; \
		echo "$$said" | sed "s/^/$$set: /"; \
		case "$$said" in *" known vulnerabilit"*) faults=1;; *) unknown=1;; esac; \
	done; \
	test $$unknown = 0 || echo "audit: THE VULNERABILITY SERVICE COULD NOT BE ASKED about all of it: nothing is proved. Run it where the service itself answers: a mirror of packages is not enough."; \
	test $$faults = 0 || echo "audit: there are known faults: raise those packages with make lock LOCK_OPTIONS='-P name'."; \
	test $$faults$$unknown = 00

LOCK_OPTIONS ?= --upgrade
LOCK := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-package kedge $(LOCK_OPTIONS)

# Renews all. One package only: make lock LOCK_OPTIONS="-P psycopg".
lock: .tools/uv.stamp
	@echo "==> requirements/*.txt"
	@$(LOCK) requirements/uv.in -o requirements/uv.txt
	@$(LOCK) requirements/dev.in $(wildcard packages/*/pyproject.toml) -o requirements/dev.txt
	@$(LOCK) requirements/peers.in -o requirements/peers.txt
	@$(LOCK) requirements/audit.in -o requirements/audit.txt
	@# The images get what was tested: the versions of the development environment.
	@$(LOCK) requirements/api.in packages/client/pyproject.toml -c requirements/dev.txt --no-annotate -o requirements/api.txt
	@$(LOCK) requirements/worker.in packages/worker/pyproject.toml -c requirements/dev.txt --no-annotate -o requirements/worker.txt

format: setup
	@$(BIN)/ruff format $(CHECKED)
	@$(BIN)/ruff check --fix $(CHECKED)

clean:
	rm -rf .tools .venv .venv-peers .audit .bench dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +
