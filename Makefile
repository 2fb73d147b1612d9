# Two commands, `make demo` and `make test`; each sets up .venv when it has to. `make help` lists the rest.

VENV := .venv
PY := $(VENV)/bin/python
# The first of these that is new enough makes .venv; `make PYTHON=/path/to/python3 demo` names another.
PYTHON ?= python3.11 python3.12 python3.13 python3
comma := ,

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-arm lint pins clean

help:
	@echo 'make demo       build, verify and run the shipped network for a Pi 4B; writes demo/'
	@echo 'make test       every test but the long proofs, with ruff, mypy and the import floors'
	@echo 'make test-slow  the long proofs'
	@echo 'make test-arm   of make test, what runs on an emulated board'
	@echo 'make lint       ruff and mypy only'
	@echo 'make pins       raise every version in constraints.txt (torch too: make pins TORCH=VERSION)'
	@echo 'make clean      remove what these made, but not .venv'

demo: $(VENV)/.demo
	@$(VENV)/bin/highwall demo

test: $(VENV)/.test
	@$(VENV)/bin/pytest

test-slow: $(VENV)/.test
	@$(VENV)/bin/pytest -m slow

test-arm: $(VENV)/.test
	@$(VENV)/bin/pytest -m 'arm and not slow'

lint: $(VENV)/.test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

pins:
	@tools/pins.sh $(TORCH)

clean:
	rm -rf build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Torch goes first, alone, because it is most of the download: a set-up cut short resumes behind it.
# Setuptools is installed, not fetched into a hidden build environment, so that its version is pinned too.
# The last thing a rule does is to touch its stamp: without the stamp, the next run takes up the work again.
define install
	@echo "installing highwall[$(1)] into $(VENV), a few minutes the first time"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation -e '.[$(1)]'
endef

$(VENV)/.demo: pyproject.toml constraints.txt | $(PY)
	$(call install,toolkit$(comma)ort)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(PY)
	$(call install,toolkit$(comma)ort$(comma)tflite$(comma)geo$(comma)dev$(comma)bench)
	@touch $(VENV)/.demo $@

$(PY):
	@for python in $(PYTHON); do \
		if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "setting up $(VENV) with $$($$python --version)"; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo 'highwall needs Python 3.11 or newer with its venv module; none of these is: $(PYTHON)' >&2; \
	echo '(Debian: apt install python3-venv; elsewhere: make PYTHON=/path/to/python3 ...)' >&2; \
	exit 1
