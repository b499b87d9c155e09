# Everything happens in .venv, which `make install` makes from python3 alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torture: kills at every step, rounds of kills on a plain store, then seconds of everything at once
N ?= 200
SECONDS ?= 600

# Tests wait now and then, for locks, leases and processes: so one more at a time than there are CPUs.
WORKERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")

.PHONY: install demo test lint types check-migrations bench screenshots torture lock clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements-dev.lock
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	@$(BIN)/python -m eventstore.demo

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder --durations=25

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

check-migrations: install
	$(BIN)/python -m pytest tests/migration -q -k "models or differences or head"

bench: install
	$(BIN)/python -m tests.bench

screenshots: install
	SCREENSHOTS=1 $(BIN)/python -m pytest tests/browser/test_screenshots.py -q

torture: install
	CRASH_POINTS=all TORTURE_ROUNDS=$(N) TORTURE_SECONDS=$(SECONDS) $(BIN)/python -m pytest \
		tests/crash/test_points.py tests/crash/test_random.py tests/crash/test_torture.py -q -s --timeout=0

lock: install
	$(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check > requirements-dev.lock

clean:
	rm -rf $(VENV) .eventstore dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
