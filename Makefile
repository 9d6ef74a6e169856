# The one way to do each thing; CI calls the same targets.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: setup
setup: $(READY)
