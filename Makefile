# Two commands are all the set-up there is: `make demo` and `make test`.
# Both build the virtual environment from setup.py, and again when it changes.

PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= demo_output
HUB_VENV ?= .venv-hub
READY := $(VENV)/.ready
HUB_READY := $(HUB_VENV)/.ready

.PHONY: demo test test-hub check-scale lint clean

demo: $(READY)
	$(VENV)/bin/python apps/digits.py --output_dir=$(DEMO_DIR) --export_dir=savedmodels/digits --overwrite

test: $(READY)
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# Classifiers of KerasHub, which brings its own bounds: an environment apart.
test-hub: $(HUB_READY)
	$(HUB_VENV)/bin/python -m pytest tests/test_kerashub.py

# The part of `make test` with several processes, and with killed ones.
check-scale: $(READY)
	$(VENV)/bin/python -m pytest -m scale

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=apps $(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) $(HUB_VENV) $(DEMO_DIR) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `.ready` comes last: an environment half made is made again.
$(READY) $(HUB_READY): setup.py pyproject.toml Makefile
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

$(READY): EXTRAS := test
$(HUB_READY): EXTRAS := test,kerashub
