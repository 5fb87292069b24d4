# make quickstart, make quickstart-compare, make test, make test-all, make benchmark.
# Everything lives in .venv; VENV=... and PYTHON=... choose others.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# the CPU build where there is no NVIDIA GPU
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda12 || echo cpu)
RUN := $(BIN)/python launch.py

.PHONY: quickstart quickstart-compare test test-all coverage mutants docs notebooks types wheel benchmark lint clean

$(VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA)]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA),test]'
	touch $@

quickstart: $(VENV)/.installed
	$(RUN) --config=configs/quickstart.py:soft --workdir=runs/quickstart

quickstart-compare: quickstart
	$(RUN) --config=configs/quickstart.py:single --workdir=runs/quickstart_single
	$(RUN) --config=configs/quickstart.py:hard --workdir=runs/quickstart_hard
	$(RUN) --mode=compare --runs=runs/quickstart_single,runs/quickstart_hard,runs/quickstart --output=runs/quickstart_compare

test: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=15

# with the campaigns that are marked `slow`
test-all: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=15 -m ""

# lines of the package that the tests run; what the processes that tests start run is not counted
coverage: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal --cov=mtl_jax --cov-report=term:skip-covered

# breaks the code one operator at a time and lists the changes that no test notices
mutants: $(VENV)/.installed-test
	$(BIN)/python tests/helpers/mutants.py

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA),docs]'
	touch $@

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/docs
	@echo "build/docs/index.html"

# runs the notebooks and writes their outputs
notebooks: $(VENV)/.installed-docs
	$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace docs/notebooks/*.ipynb

$(VENV)/.installed-types: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA),types]'
	touch $@

types: $(VENV)/.installed-types
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

wheel:
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# the peers live in an environment of their own: they would change what the project's tests see
$(VENV)-benchmark/.installed: pyproject.toml benchmarks/requirements.txt
	$(PYTHON) -m venv $(VENV)-benchmark
	$(VENV)-benchmark/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA)]' -r benchmarks/requirements.txt
	touch $@

benchmark: $(VENV)-benchmark/.installed
	$(VENV)-benchmark/bin/python benchmarks/all.py

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
