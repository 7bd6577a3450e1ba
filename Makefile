# `make demo` and `make test` need Python 3.11+, pip and make; each sets up .venv by itself, from the
# tested versions in requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
# --no-compile: modules are compiled when they are imported, a quarter of the 17,000 that there are
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
# jwst holds some packages back, so that the newest of all are without it: EXTRAS=test,jwst
EXTRAS ?= test
BUILD = hatchling hatch-fancy-pypi-readme
# each file's tests in one process, long files first: tests/helpers/schedule.py
PYTEST := -m pytest -n auto --dist loadfile --no-loadscope-reorder

C_SOURCES = $(shell find kernels tests -name "*.cu" -o -name "*.cuh" -o -name "*.cpp" -o -name "*.h")

.PHONY: demo test pytest test-fast test-newest test-lowest lint docs dist lock clean

demo: $(VENV)/.installed
	$(BIN)/gpucoron demo demo

test: lint pytest

pytest: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST)

test-fast: $(VENV)/.installed-test
	@echo "leaves out what is marked slow: runs that are killed, stopped, continued, short of memory or disk,"
	@echo "on Dask or on the emulated GPU; sanitizers; runs beside jwst; whole runs of some kinds"
	$(BIN)/python $(PYTEST) -m "not slow"

# The newest versions that pyproject.toml allows, as they are today; the emulated GPU in all orders.
test-newest: .venv-newest/bin/python
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e '.[$(EXTRAS)]'
	GPUCORON_ALL_ORDERS=1 .venv-newest/bin/python $(PYTEST)

# The lowest that it states, for Python 3.11, without jwst, which needs newer ones.
test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python $(PYTEST)

# What .pre-commit-config.yaml does to the files of a commit, for all files.
lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	@echo "mypy, for this system and for Windows"  # beside each other
	@$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 & other=$$!; \
	  $(BIN)/mypy; here=$$?; wait $$other && exit $$here

# The site, in build/docs; a warning is an error. Its tutorial and notebook are executed.
docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -j auto docs build/docs
	@echo "build/docs/index.html"

# What a release consists of, in dist/. Tests of it: tests/test_packages.py
dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/twine check --strict dist/*

# Brings pyproject.toml's changes into the lock; `make lock UPGRADE=1` takes the newest of everything.
lock: $(VENV)/bin/python
	$(BIN)/python $(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest \
	  --python-version 3.11 --no-annotate --custom-compile-command 'make lock' \
	  $(if $(UPGRADE),--upgrade) --extra test --extra jwst --extra docs --extra release \
	  -o $(LOCK) pyproject.toml

.PRECIOUS: %/bin/python
%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing, or older than Python 3.11; say which to use: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $* || { rm -rf $*; \
	  echo "cannot make $* with $(PYTHON); on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }

# Built with the lock's build tools, too, and not with the newest.
$(VENV)/.installed: pyproject.toml $(LOCK) | $(VENV)/bin/python
	@echo "installing gpucoron and what it needs into $(VENV)"
	@$(BIN)/python $(PIP) -c $(LOCK) $(BUILD)
	@$(BIN)/python $(PIP) -c $(LOCK) --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(LOCK) | $(VENV)/bin/python
	@echo "installing gpucoron, jwst and the test tools into $(VENV)"
	@$(BIN)/python $(PIP) -c $(LOCK) $(BUILD)
	@$(BIN)/python $(PIP) -c $(LOCK) --no-build-isolation -e '.[test,jwst,release]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml $(LOCK) | $(VENV)/bin/python
	@echo "installing gpucoron and the tools of the site into $(VENV)"
	@$(BIN)/python $(PIP) -c $(LOCK) $(BUILD)
	@$(BIN)/python $(PIP) -c $(LOCK) --no-build-isolation -e '.[docs]'
	@touch $@

.venv-lowest/.installed: pyproject.toml
	@rm -rf .venv-lowest
	@$(MAKE) --no-print-directory .venv-lowest/bin/python
	@.venv-lowest/bin/python $(PIP) uv
	@.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
	  --resolution lowest-direct -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest demo build dist
