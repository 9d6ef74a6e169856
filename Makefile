# The one way to do each thing; CI calls the same targets.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Test processes: each begins with its share of the modules, in order, and takes over tests of the other's at the end.
JOBS ?= 2
# Further arguments of pytest, for example: make test ARGS='tests/unit -k fence'
ARGS ?=

# Programs that nobody here wrote: what our exports must satisfy, what boots Linux as a guest, a model checker, and what
# reads and boots firmware images; as Debian packages.
PEERS := libnbd-bin nbdkit nbd-client qemu-utils fio e2fsprogs spin gcc libc6-dev pkg-config \
	qemu-system-x86 nvme-cli xfsprogs busybox-static kmod util-linux zstd u-boot-tools \
	u-boot-qemu qemu-system-arm device-tree-compiler openssl fdisk
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# PIP_CONSTRAINT, not -c alone: it pins the build backend too.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: setup
setup: $(READY) ## Make .venv with the pinned packages (the other targets do it when needed)

.PHONY: demo
demo: $(READY) ## Start a rack, kill and freeze its primary, check every acknowledged write (< 60 s)
	$(BIN)/python -m rackctl.demo

.PHONY: test
test: $(READY) ## Run every test
	$(BIN)/python -m pytest -q -rs -n $(JOBS) --dist worksteal $(ARGS)

# SEEDS from FIRST on, or one SEED again with its timeline; ARGS=--shrink leaves faults out while it fails.
SEEDS ?= 200
FIRST ?= 0
.PHONY: sim
sim: $(READY) ## Run simulated racks: SEEDS=1000 of them, or SEED=17 again with its timeline (ARGS=--shrink)
	$(BIN)/python -m rackctl.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS)) $(ARGS)

.PHONY: model
model: $(READY) ## Check the model of fence, lease and takeover with spin, and that every rule is needed
	$(BIN)/python -m pytest -q tests/model $(ARGS)

MINUTES ?= 5
.PHONY: fuzz
fuzz: $(READY) ## Attack every parser of bytes from outside for MINUTES=5; keeps what reaches something new
	$(BIN)/python tests/fuzz --minutes $(MINUTES) $(ARGS)

# A longer or other run: make chaos MINUTES=30 SEED=7 ARGS='--heads 3 --keep /tmp/chaos'.
.PHONY: chaos
chaos: $(READY) ## Attack a rack of real processes for MINUTES=5 under the faults of SEED=0
	$(BIN)/rackctl chaos --minutes $(MINUTES) --seed $(or $(SEED),0) $(ARGS)

.PHONY: mutants
mutants: $(READY) ## Break each rule of the design in turn and see that the simulator or a test notices (about an hour)
	$(BIN)/python tests/mutation $(ARGS)

.PHONY: lint
lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(READY) ## Check types (mypy --strict)
	$(BIN)/mypy

.PHONY: bench
bench: $(READY) ## Measure beside qemu-nbd and nbdkit; ARGS=--write puts the table into docs/benchmarks.md
	$(BIN)/python tests/bench $(ARGS)

.PHONY: peers
peers: $(READY) ## Install the real programs that the tests use, and build the Linux guest (Debian, Ubuntu)
	$(SUDO) apt-get update -q
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(PEERS)
	$(BIN)/python tests/peers/guest || echo 'Tests that need the guest will be skipped.'
	$(BIN)/rackctl board base || echo 'Tests that need the emulated board will be skipped.'
	$(BIN)/python -m spdk_bindings.spdk.build || echo 'Tests of the driver over SPDK will be skipped.'

.PHONY: clean
clean: ## Remove everything that was made
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
