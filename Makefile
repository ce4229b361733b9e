# RecTrio. `make run` sets everything up and runs the chapters; `make` alone lists the rest.

PYTHON ?= python3
DISK_GB ?= 12
BIN := .venv/bin
READY := .venv/installed
LINT = $(BIN)/ruff check rectrio_lib tests notebooks && $(BIN)/lint-imports
PYTEST := RECTRIO_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

# A folder `../shared/data` beside the checkout is used if it exists, and so is `../shared/weights`.
ifneq ($(wildcard ../shared/data),)
RECTRIO_DATA ?= $(abspath ../shared/data)
export RECTRIO_DATA
endif
ifneq ($(wildcard ../shared/weights),)
RECTRIO_WEIGHTS ?= $(abspath ../shared/weights)
export RECTRIO_WEIGHTS
endif

# Threads of PyTorch and FAISS that wait for one another spin so many times, then sleep. By default they spin longer: a
# step of training beside other work takes 690 ms, not 470. Sleeping at once, a step alone takes 135 ms, not 108.
GOMP_SPINCOUNT ?= 10000
export GOMP_SPINCOUNT

# Valid in Python 2 and 3, so that an old interpreter prints the sentence, not a syntax error.
define CHECK
import sys
if sys.version_info < (3, 11):
    sys.exit("RecTrio needs Python 3.11 or newer, but $(PYTHON) is %d.%d: name another one, such as "
             "make PYTHON=python3.13 run." % tuple(sys.version_info[:2]))
import importlib.util, os, shutil
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("$(PYTHON) cannot create virtual environments, because its ensurepip module is missing: "
             "install it (on Debian and Ubuntu the package python3-venv), then run make again.")
free = shutil.disk_usage(".").free / 1e9
if not os.path.isdir(".venv") and free < $(DISK_GB):
    sys.exit("Setting up takes $(DISK_GB) GB of disk (PyTorch with its CUDA libraries is most of it), but only "
             "%.1f GB are free here: make room, then run make again." % free)
endef
export CHECK

.PHONY: help run check test serve lab clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

run: $(READY)  ## run the chapters; PROFILE=full trains longer, ARGS="--only 02" runs one
	@$(BIN)/rectrio run $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

check: $(READY)  ## lint, import rule and quick tests, in minutes; ARGS="-k index" for some of them
	$(LINT)
	$(PYTEST) tests -m "not slow" $(ARGS)

test: $(READY)  ## lint, import rule and all tests, and the notebooks re-run against their stored outputs
	$(LINT)
	@outputs=$$(mktemp -d) && trap 'rm -rf "$$outputs"' EXIT && trap 'exit 130' INT TERM && \
	RECTRIO_OUTPUTS="$$outputs" $(PYTEST) tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=3600

serve: $(READY)  ## open the page on a demo collection; ARGS=NAME on one of yours
	@$(BIN)/rectrio serve $(or $(ARGS),--demo)

lab: $(READY)  ## open JupyterLab in notebooks/
	$(BIN)/jupyter-lab $(ARGS) notebooks

clean:  ## remove .venv and what runs left in outputs/; keep data/ and outputs/published/
	find outputs -mindepth 1 -maxdepth 1 ! -name README.md ! -name published -exec rm -rf {} +
	rm -rf .venv rectrio.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(READY): pyproject.toml requirements.lock
	@command -v "$(PYTHON)" >/dev/null || \
	{ echo "RecTrio needs Python 3.11 or newer, but there is no $(PYTHON): install it first." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK"
	@echo "Setting up .venv, once: about 7 GB, a few minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(if $(CI),--quiet) -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
