# One virtual environment, made once; `make run` and `make test` are the whole interface.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROMPT ?= The report says that Leila Haddad counted 42 herons at Lake Tuz. Who counted the herons?

.PHONY: run test test-fast test-all browser format lint docs native clean

# pip shows what it downloads on a terminal, and is silent elsewhere.
PIP = $(BIN)/python -m pip install $(shell test -t 2 || echo -q) --disable-pip-version-check -c constraints.txt

$(VENV)/.base: pyproject.toml constraints.txt
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing torch, unless it is there (200 MB and more; see README.md for a torch without CUDA) ..."
	@$(PIP) torch
	@echo "Installing the other packages and building the C++ kernels (some minutes) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "Installing what the tests need ..."
	@$(PIP) -e '.[test,lint]'
	@touch $@

run: $(VENV)/.base
	@# With its own JAMBA_HOME, so that the demo model answers whatever model was used last.
	@JAMBA_HOME=$(VENV)/home $(BIN)/jamba run "$(PROMPT)"

# ARGS goes to pytest: make test ARGS="-k session". JOBS: how many files of tests run at a time.
JOBS ?= 2
test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu and not peer and not browser" $(ARGS)

# The tests that take under a minute together, for the time between two edits.
test-fast: $(VENV)/.test
	$(BIN)/python -m pytest --fast -m "not slow and not gpu and not peer and not browser" $(ARGS)

# Everything, peers included: builds llama-cpp-python (about five minutes) the first time.
test-all: $(VENV)/.test
	@echo "Building llama-cpp-python (some minutes the first time) ..."
	@$(PIP) -e '.[peers]'
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

# The page in a real browser: needs Chromium, its driver and, for axe, AXE=path of axe.min.js (npm pack axe-core).
browser: $(VENV)/.test
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(if $(AXE),JAMBA_AXE=$(AXE)) $(BIN)/python -m pytest -m browser tests/browser $(ARGS)

format: $(VENV)/.test
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m tools.check_imports && $(BIN)/python -m tools.cli_docs --check

docs: $(VENV)/.test
	$(BIN)/python -m tools.cli_docs

# Rebuild the C++ libraries in place after editing them. TRAIN=1: the training kernels too. SAN=address|thread|undefined (or
# address,undefined): with that sanitizer in build/sanitized, for debugging; prints the environment that loads them.
native: $(VENV)/.base
	$(BIN)/python -m quant.native.build $(if $(TRAIN),--train) $(if $(SAN),--sanitize $(SAN))

clean:
	rm -rf build dist *.egg-info
	find quant jambacli -name '*.so' -delete
