# Two commands are all the set-up there is: `make demo` and `make test`.
# Both build the virtual environment from setup.py, and again when it changes.

PYTHON ?= python3
VENV ?= .venv
MATRIX ?= .venv-matrix
DEMO_DIR ?= demo_output

READY := $(VENV)/.ready
LOWEST := $(MATRIX)/lowest/.ready
MIDDLE := $(MATRIX)/middle/.ready
# In processes side by side, each file in one of them.
PYTEST := -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
CORE := -m core

.PHONY: demo test test-thorough test-fast check-mutations
.PHONY: matrix matrix-lowest matrix-middle wheel docs lint clean

demo: $(READY)
	$(VENV)/bin/python apps/digits.py --output_dir=$(DEMO_DIR) --export_dir=savedmodels/digits --overwrite

test: $(READY)
	$(VENV)/bin/python $(PYTEST) -m "not thorough"

# The rest of the suite: several processes and killed ones, the paper's
# experiments in little, examples and benchmarks, every kind of layer and of
# classifier.
test-thorough: $(READY)
	$(VENV)/bin/python $(PYTEST) -m thorough

# The core alone, without subprocesses: tests/conftest.py says what it is.
test-fast: $(READY)
	$(VENV)/bin/python $(PYTEST) $(CORE)

# 1,000 files of each kind and 1,000 answers of a server, changed at random.
check-mutations: $(READY)
	DD_KERAS_MUTATIONS=1000 $(VENV)/bin/python -m pytest tests/test_mutations.py

# The core with the oldest packages that setup.py allows, beside KerasHub, and
# with the newest packages, those of `make test`.
matrix: matrix-lowest matrix-middle test-fast

matrix-lowest: $(LOWEST)
	$(<D)/bin/python $(PYTEST) $(CORE)

matrix-middle: $(MIDDLE)
	$(<D)/bin/python $(PYTEST) $(CORE)
	$(<D)/bin/python -m pytest tests/test_kerashub.py

# The wheel and the sdist, looked into, and the wheel used without this folder.
wheel: $(READY)
	$(VENV)/bin/python .ci/check_wheel.py

# The site, docs/_build/index.html; warnings are errors, and guides are run.
docs: $(READY)
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build
	$(VENV)/bin/python .ci/check_site.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=apps $(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(MATRIX) $(DEMO_DIR) build dist docs/_build docs/jupyter_execute *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `.ready` comes last: an environment half made is made again.
$(READY) $(LOWEST) $(MIDDLE): setup.py Makefile .ci/lowest.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' $(PINS)
	touch $@

$(READY) $(LOWEST): EXTRAS := test
$(LOWEST): PINS := --constraint .ci/lowest.txt
# The newest KerasHub there is: its tensorflow-text asks for TensorFlow < 2.21.
$(MIDDLE): EXTRAS := test,kerashub
$(MIDDLE): PINS := 'tensorflow==2.20.*'
