# One environment in .venv, made on first use and again when pyproject.toml or the constraints change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
CONFIG ?= configs/my_fashionbert.py

.PHONY: quickstart setup test test-gpu test-slow lint docs bench profile clean

quickstart: $(VENV)/.installed  ## draws a catalogue, trains on it, ranks products and writes quickstart/report.html
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

setup: $(VENV)/.ready  ## installs what the tests need: torch as a reference, ONNX, MiniLM, Beam, libtpu to compile with

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@echo "setting up $(VENV), once: 3.2 GB on disk"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[serve]'
	$(BIN)/pip check
	touch $@

$(VENV)/.ready: $(VENV)/.installed
	$(PIP) torch==2.13.0
	$(PIP) -e '.[beam,caption,excel,export,gcs,minilm,parity,test,tpu]'
	$(BIN)/pip check
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(BIN)/pip check
	touch $@

lint: $(VENV)/.dev  ## checks rules and format with ruff, types of the packages that others build on with pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: setup  ## runs all tests but the slow ones, two files at once, on the CPU with eight simulated devices
	JAX_PLATFORMS=cpu $(BIN)/pytest -n 2 --dist loadfile --durations 25

test-slow: setup  ## runs the slow tests: killed and resumed runs, full disks, mutated tables
	JAX_PLATFORMS=cpu $(BIN)/pytest -m slow -n 2 --dist loadfile --durations 25

test-gpu: setup  ## runs the tests that need an NVIDIA GPU
	$(PIP) -e '.[cuda]'
	$(BIN)/pytest --noconftest tests/gpu

docs: $(VENV)/.docs  ## builds the site of guides, reference and lab notes in site/; a broken link is an error
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	$(BIN)/pip check
	touch $@

bench: setup  ## times training, scoring and patch features on the shapes of CONFIG, in JAX and in PyTorch
	$(BIN)/fbjax bench --config $(CONFIG) --compare torch

profile: $(VENV)/.installed  ## writes a trace of three train steps to profile/, for TensorBoard or Perfetto
	$(BIN)/fbjax bench --config $(CONFIG) --repeats 0 --trace profile

clean:
	rm -rf $(VENV) build *.egg-info
