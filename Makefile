# One environment in .venv, made on first use and again when pyproject.toml or the constraints change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
CONFIG ?= configs/my_catalogue.py

.PHONY: quickstart setup test test-slow bench profile clean

quickstart: $(VENV)/.installed  ## draws a catalogue, trains on it, asks it and writes a report: quickstart/report.html
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

setup: $(VENV)/.ready  ## what the tests need besides: torch as a reference, ONNX, MiniLM, Beam, libtpu to compile with

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV), once: 2.7 GB on disk"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	$(BIN)/pip check
	touch $@

$(VENV)/.ready: $(VENV)/.installed
	$(PIP) torch==2.13.0
	$(PIP) -e '.[beam,export,gcs,minilm,parity,test,tpu]'
	$(BIN)/pip check
	touch $@

test: setup  ## everything but the slow tests, two files at once, on the CPU with eight simulated devices
	JAX_PLATFORMS=cpu $(BIN)/pytest -n 2 --dist loadfile

test-slow: setup  ## runs killed and resumed, full disks, mutated tables, the quickstart
	JAX_PLATFORMS=cpu $(BIN)/pytest -m slow

bench: setup  ## training, scoring and patch features on the shapes of CONFIG, beside the same model in PyTorch
	$(BIN)/fbjax bench --config $(CONFIG) --compare torch

profile: $(VENV)/.installed  ## a trace of three train steps in profile/, for TensorBoard or Perfetto
	$(BIN)/fbjax bench --config $(CONFIG) --repeats 0 --trace profile

clean:
	rm -rf $(VENV) build *.egg-info
