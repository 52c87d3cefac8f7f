# make demo    VGG16 to a verified, measured OpenVINO INT8 bundle, with a verdict
# make test    all tests
# make check   lint, format and types
# make figures the figures of the README: time, memory, and the comparison with NNCF and onnxruntime
# Each makes .venv by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check figures clean

demo: $(VENV)/.demo
	@mkdir -p results
	$(BIN)/vggdeploy run --target ov-int8 --weights demo --out bundles/demo --force \
		--min-agreement 0.995 --max-drop 0.005 --json results/demo.json

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# What is checked is what a user gets: the package as it is installed, away from this folder.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build $(VENV)/installed
	$(INSTALL) --no-deps --target $(VENV)/installed .
	rm -rf build
	cd $(VENV)/installed && ../bin/mypy --config-file ../../pyproject.toml -p vggdeploy

figures: $(VENV)/.peers
	$(BIN)/python -m vggdeploy.benchmarks.footprint --calib-images 128
	@mkdir -p results
	$(BIN)/python -m vggdeploy.benchmarks.peers --json results/peers.json --force
	$(BIN)/python -m vggdeploy.benchmarks.collection --images 64 256 512 \
		--json results/collection.json --force

clean:
	rm -rf $(VENV) build dist bundles results *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[export,openvino,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e '.[export,openvino,demo,dev]'
	@touch $@

$(VENV)/.peers: $(VENV)/.demo
	$(INSTALL) -e '.[export,openvino,demo,peers]'
	@touch $@
