# make help says what there is. The work is done by scripts/setup.sh and scripts/test.sh.
#
# PYTHON   interpreter (default: the newest of python3.13, 3.12, 3.11, python3 that can make a virtual environment)
# VENV     virtual environment (default: .venv)
# GLUSTER  yes or no: with or without a private Gluster in the demo (default: yes; it takes root)
# CEPH     yes: with a private Ceph in the demo (default: no; its Debian packages take 200 MB)
# FLEET    yes: the demo of a fleet: a NATS server and three hosts on this machine
# ARGS     further arguments for the demo, pytest or the benchmarks
# FRESH    the folder of make fresh (default: build/fresh)
# COMMAND  what make fresh runs in its machine (default: make demo && make test)
# REUSE    yes: make fresh uses the machine that it made before

PYTHON ?=
VENV ?= .venv
GLUSTER ?= yes
CEPH ?= no
FLEET ?= no
ARGS ?=
FRESH ?= build/fresh
COMMAND ?=
REUSE ?=

export VENV GLUSTER CEPH FLEET
export PYTHONNOUSERSITE = 1
# Not PYTHON: glusterd runs what it names, also where it is empty, and does not start then.
unexport PYTHON PYTHONPATH PYTHONHOME PYTHONUNBUFFERED

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test docs bench soak fresh lint deb clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-6s %s\n' "$$name" "$$text"; done

demo:  ## show it at work on real storage (GLUSTER=no: without Gluster; CEPH=yes: with Ceph; FLEET=yes: a fleet of three hosts)
	@PYTHON='$(PYTHON)' scripts/setup.sh demo
	@$(BIN)/python -m $(if $(filter yes,$(FLEET)),demo.fleet,demo $(if $(filter no,$(GLUSTER)),--no-gluster) $(if $(filter yes,$(CEPH)),--ceph)) $(ARGS)

test:  ## check style, types and imports, run all tests (ARGS='-k lanes': some)
	@PYTHON='$(PYTHON)' scripts/setup.sh test
	@scripts/test.sh $(ARGS)

docs:  ## make the documentation's site and the man pages, in build/docs
	@PYTHON='$(PYTHON)' scripts/setup.sh docs
	@$(BIN)/python -m manual man build/docs/man
	@$(BIN)/python -m manual site build/docs

bench:  ## measure, beside libvirt where it is installed
	@PYTHON='$(PYTHON)' scripts/setup.sh bench
	@$(BIN)/python -m benchmarks $(ARGS)

soak: export ASTORE_SOAK_SECONDS ?= 1800
soak: export ASTORE_KILLS ?= 334
soak: export ASTORE_FLEET_FAULTS ?= 20
soak: export ASTORE_FLEET_OPERATIONS ?= 10000
soak: export ASTORE_REQUIRE_ALL = 1
soak:  ## random work and faults for half an hour (ASTORE_SOAK_SECONDS), and a thousand kills (ASTORE_KILLS on each storage)
	@PYTHON='$(PYTHON)' scripts/setup.sh test
	@$(BIN)/python -m pytest -s -m soak $(ARGS)

fresh: export FRESH := $(FRESH)
fresh: export COMMAND := $(value COMMAND)
fresh: export REUSE := $(REUSE)
fresh:  ## run make demo and make test on a new machine: a minimal Debian in a folder (as root)
	@scripts/setup.sh fresh
	@scripts/fresh.sh

lint:  ## put style in order, and check style, types and imports
	@PYTHON='$(PYTHON)' scripts/setup.sh lint
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy --strict && $(BIN)/lint-imports --no-logo --no-cache

deb:  ## build the Debian package, install it on a new machine, use it and remove it (as root)
	@scripts/setup.sh deb
	@scripts/deb.sh

clean:  ## remove what the others made
	@FRESH='$(FRESH)' scripts/fresh.sh remove
	@FRESH=build/deb/fresh scripts/fresh.sh remove
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov .coverage .coverage.*
	@find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -e '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi
