# Two commands for a fresh machine with Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
# Extra arguments for PyTorch's install line, e.g. TORCH="--index-url <the CPU address from pytorch.org>"
TORCH ?=
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt
FILES := pyproject.toml constraints.txt CMakeLists.txt
ifeq ($(OS),Windows_NT)
BIN := Scripts
else
BIN := bin
endif

.PHONY: demo test test-slow test-peers lint check-hub benchmarks clean

demo: .venv/installed
	.venv/$(BIN)/chumoku demo

.venv/installed: $(FILES) $(shell find src recipes -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.toml')
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/$(BIN)/python $(PIP) torch $(TORCH)
	.venv/$(BIN)/python $(PIP) ".[ja,train]"
	touch $@

# The tests have an environment of their own: they need the published implementations beside ours.
.venv-test/installed: $(FILES) $(wildcard src/chumoku/kernels/*.cpp src/chumoku/kernels/*.h)
	test -d .venv-test || $(PYTHON) -m venv .venv-test
	.venv-test/$(BIN)/python $(PIP) torch $(TORCH)
	.venv-test/$(BIN)/python $(PIP) -e ".[ja,sudachi,train,test]"
	.venv-test/$(BIN)/python $(PIP) --no-deps timm
	touch $@

RUN := OMP_NUM_THREADS=1 .venv-test/$(BIN)/python -m pytest

test: .venv-test/installed
	$(RUN) -n 2 -q -m "not slow and not peers"

test-slow: .venv-test/installed
	$(RUN) -n 2 -q -m "not peers"

test-peers: .venv-test/installed
	.venv-test/$(BIN)/python $(PIP) ".[peers]"
	$(RUN) -q -m peers

lint: .venv-test/installed
	.venv-test/$(BIN)/ruff check .
	.venv-test/$(BIN)/ruff format --check .
	.venv-test/$(BIN)/mypy
	.venv-test/$(BIN)/lint-imports
	.venv-test/$(BIN)/python tests/check_docs.py

# On a machine with a network: pulls each default model, runs one example, prints a report.
check-hub: .venv/installed
	.venv/$(BIN)/python benchmarks/check_hub.py

benchmarks: .venv-test/installed
	.venv-test/$(BIN)/python benchmarks/compare.py

clean:
	rm -rf .venv .venv-test build dist
