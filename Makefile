# RecTrio. `make run` sets everything up and runs the chapters; `make` alone lists the rest.

PYTHON ?= python3
DISK_GB ?= 12
BIN := .venv/bin
READY := .venv/installed

# A folder `../shared/data` beside the checkout is used if it exists, and so is `../shared/weights`.
ifneq ($(wildcard ../shared/data),)
RECTRIO_DATA ?= $(abspath ../shared/data)
export RECTRIO_DATA
endif
ifneq ($(wildcard ../shared/weights),)
RECTRIO_WEIGHTS ?= $(abspath ../shared/weights)
export RECTRIO_WEIGHTS
endif

# Reads as Python 2 and 3 alike, so that an old one gets the sentence and no syntax error.
define CHECK
import sys
if sys.version_info < (3, 10):
    sys.exit("RecTrio needs Python 3.10 or newer, but $(PYTHON) is %d.%d: name another one, as in "
             "make PYTHON=python3.12 run." % tuple(sys.version_info[:2]))
import importlib.util, os, shutil
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("$(PYTHON) cannot make virtual environments, because its ensurepip module is missing: "
             "install it (on Debian and Ubuntu the package python3-venv), then run make again.")
free = shutil.disk_usage(".").free / 1e9
if not os.path.isdir(".venv") and free < $(DISK_GB):
    sys.exit("Setting up takes $(DISK_GB) GB of disk (PyTorch with its CUDA libraries is most of it), but only "
             "%.1f GB are free here: make room, then run make again." % free)
endef
export CHECK

.PHONY: help run test lab clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

run: $(READY)  ## run the chapters; PROFILE=full for the real thing, ARGS="--only 02" for more options
	@$(BIN)/rectrio run $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

test: $(READY)  ## lint, unit tests, and every notebook re-run against its stored outputs
	$(BIN)/ruff check rectrio_lib tests notebooks
	@outputs=$$(mktemp -d) && trap 'rm -rf "$$outputs"' EXIT && trap 'exit 130' INT TERM && \
	RECTRIO_OFFLINE=1 RECTRIO_OUTPUTS="$$outputs" $(BIN)/python -m pytest tests notebooks \
	--nbval-lax --nbval-current-env --nbval-cell-timeout=600 $(ARGS)

lab: $(READY)  ## open JupyterLab in notebooks/
	$(BIN)/jupyter-lab $(ARGS) notebooks

clean:  ## remove .venv and what runs left in outputs/; keep data/ and outputs/published/
	find outputs -mindepth 1 -maxdepth 1 ! -name README.md ! -name published -exec rm -rf {} +
	rm -rf .venv rectrio.egg-info .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml requirements.lock
	@command -v "$(PYTHON)" >/dev/null || \
	{ echo "RecTrio needs Python 3.10 or newer, but there is no $(PYTHON): install it first." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK"
	@echo "Setting up .venv, once: about 6 GB, a few minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(if $(CI),--quiet) -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
