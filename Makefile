# make demo    VGG16 to a verified, measured OpenVINO INT8 bundle, with a verdict
# make test    all tests
# make check   lint, format and types
# make test-cuda  the TensorRT runtime's tests, on a CUDA driver of host memory (compiles PyCUDA: minutes)
# make faults  500 kills of builds, 2,000 bits flipped, 16 builds at once (minutes)
# make fuzz    100,000 inputs of every kind that others may have written (hours)
# make overhead   what that runtime adds to a query
# make figures the figures of the README: time, memory, and the comparison with NNCF and onnxruntime
# make speed   speed beside peers and benchmark_app, on a quiet machine
# Each makes .venv by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-cuda faults fuzz overhead check figures speed clean

demo: $(VENV)/.demo
	@mkdir -p results
	$(BIN)/vggdeploy run --target ov-int8 --weights demo --out bundles/demo --force \
		--min-agreement 0.99 --max-drop 0.01 --json results/demo.json

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# In a process of their own: that driver takes the place of a real one.
test-cuda: $(VENV)/.cuda
	VGGDEPLOY_CUDA_HOST=1 $(BIN)/python -m pytest tests/cuda_host

faults: $(VENV)/.dev
	$(BIN)/python tests/faults/accidents.py

# With atheris where there is a wheel of it.
fuzz: $(VENV)/.dev
	-$(INSTALL) -e '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py --inputs 100000

overhead: $(VENV)/.cuda
	$(BIN)/python -m vggdeploy.benchmarks.trt_overhead --driver $(VENV)/cuda_host/libcuda.so.1

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

# A quiet machine and half an hour.
speed: $(VENV)/.peers
	@mkdir -p results
	$(BIN)/vggdeploy build --target ov-int8 --out bundles/demo
	$(BIN)/vggdeploy tune bundles/demo --goal latency
	$(BIN)/vggdeploy tune bundles/demo --goal throughput
	$(BIN)/python -m vggdeploy.benchmarks.tuned bundles/demo --json results/tuned.json --force
	$(BIN)/python -m vggdeploy.benchmarks.peers --latency --json results/latency.json --force

clean:
	rm -rf $(VENV) build dist bundles results *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[export,openvino,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e '.[export,openvino,demo,dev]'
	@# The builder alone, for the tests of real engines; where there is no wheel they are skipped.
	-$(INSTALL) tensorrt-rtx-cu13
	@# MLPerf's load generator: where there is no wheel it compiles, or its tests are skipped.
	-$(INSTALL) -e '.[mlperf]'
	@touch $@

$(VENV)/.cuda: $(VENV)/.dev $(wildcard tests/cuda_host/*.c tests/cuda_host/*.h)
	$(BIN)/python tests/cuda_host/install.py $(VENV)/cuda_host
	@touch $@

$(VENV)/.peers: $(VENV)/.demo
	$(INSTALL) -e '.[export,openvino,demo,peers]'
	@touch $@
