# make quickstart: set up, train on the 8x8 digits, sample, likelihood, report.      make test: set up, run the tests.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
INSTALLER ?= pip
WORKERS ?= 2
BIN = $(VENV)/bin
STAMP = $(VENV)/.set-up

# waiting threads sleep instead of spinning: ten times faster where the cores are shared
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test lint mutants setup clean

quickstart: $(STAMP)
	$(BIN)/sde-score quickstart --workdir=$(WORKDIR)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

mutants: $(STAMP)
	$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check -q "cosmic-ray>=8.4"
	$(BIN)/python tools/mutants.py $(MUTANTS)

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "sde_score needs Python 3.10 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -d $(VENV) || test "$$(df -Pk . | awk 'NR==2 {print $$4}')" -gt 7000000 || { echo "The set-up needs 7 GB of free disk (torch and its libraries); this disk has less. Name another place: make VENV=/path/to/venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(INSTALLER),uv)
	uv pip install --python $(BIN)/python -e ".[dev]"
else
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]"
endif
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
