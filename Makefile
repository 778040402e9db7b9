# Everything from a clean clone, with only Python >= 3.11 and a package index. `make` lists it.
#
# The virtual environment is .venv. A stamp in it says what is installed, so a target that has
# nothing to install starts at once. ARGS goes to the command: make serve ARGS="--port 9000".

VENV   := .venv
PY     := $(VENV)/bin/python
# The first Python that is new enough and can make a virtual environment.
PYTHON  = $(shell for p in python3.13 python3.12 python3.14 python3.11 python3 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$p; break; }; done)
PIP    := $(PY) -m pip --disable-pip-version-check --quiet
ARGS   ?=
MINUTES ?= 20
# Tests that run at once. 0 runs them in pytest's own process, for a debugger.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install serve doctor test faults soak lint format docs bench build lock backends checkers clean

help: ## Say what there is
	@echo "make TARGET [ARGS=...]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' Makefile | expand -t 12

$(PY):
	@test -n "$(PYTHON)" || { echo "Pharos needs Python 3.11 or newer with the venv module." \
	"Install one (Debian and Ubuntu: apt-get install python3-venv; macOS: brew install python)" \
	"or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear $(VENV)

$(VENV)/.runtime: $(PY) requirements/runtime.txt pyproject.toml
	@echo "Installing what serving needs into $(VENV) (once; about 80 MB to download)"
	@$(PIP) install --require-hashes --requirement requirements/runtime.txt
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	@echo "Installing the tools of development into $(VENV) (once)"
	@$(PIP) install --require-hashes --requirement requirements/dev.txt
	@touch $@

install: $(VENV)/.runtime ## Install Pharos and its pinned dependencies into .venv

serve: $(VENV)/.runtime ## Serve the starter model on http://127.0.0.1:8080 (ARGS: see --help)
	@$(VENV)/bin/pharos serve $(ARGS)

doctor: $(VENV)/.runtime ## Say whether this machine can serve, and what to mend
	@$(VENV)/bin/pharos doctor $(ARGS)

test: $(VENV)/.dev ## Run the tests (ARGS goes to pytest)
	@$(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

faults: $(VENV)/.dev ## Do the faults of the battery to a running server, and judge it (ARGS goes to pytest)
	@$(PY) -m pytest tests/faults -m "battery or not battery" --timeout 180 \
	-o faulthandler_timeout=200 $(ARGS)

soak: $(VENV)/.dev ## Mixed load with random faults for MINUTES minutes
	@$(PY) -m bench.soak --minutes $(MINUTES) $(ARGS)

lint: $(VENV)/.dev ## Check style, types and the borders between the rooms
	@status=0; \
	$(VENV)/bin/ruff check . || status=1; \
	$(VENV)/bin/ruff format --check . || status=1; \
	$(VENV)/bin/mypy || status=1; \
	$(VENV)/bin/lint-imports --no-logo || status=1; \
	exit $$status

format: $(VENV)/.dev ## Format the code and mend what ruff can
	@$(VENV)/bin/ruff check --fix --exit-zero --quiet .
	@$(VENV)/bin/ruff format .

docs: $(VENV)/.dev ## Generate the reference pages, boards and service files again
	@$(PY) tools/reference.py

bench: $(VENV)/.dev ## Measure against mlx_lm.server; the figures go to bench/results
	@$(PY) -m bench $(ARGS)

build: $(VENV)/.dev ## Build the wheel and the source distribution into dist
	@$(PY) -m build --quiet --no-isolation --outdir dist .

$(VENV)/.deploy: $(VENV)/.dev requirements/deploy.txt
	@echo "Installing the checkers of deploy/ into $(VENV) (once; about 35 MB to download)"
	@$(PIP) install --require-hashes --requirement requirements/deploy.txt
	@touch $@

checkers: $(VENV)/.deploy ## Install what the tests of Dockerfile and Kubernetes check with

lock: $(VENV)/.dev ## Refresh the pinned requirements (ARGS: --upgrade)
	@$(PIP) install uv
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tools/lock $(ARGS)

backends: ## Build Prometheus, Alertmanager, collector, Jaeger, VictoriaLogs into .backends (needs Go)
	@tools/backends

clean: ## Remove everything that make made here (the models' cache stays)
	@rm -rf $(VENV) .backends build dist mlx_pharos.egg-info .coverage* .mypy_cache .ruff_cache \
	.pytest_cache .hypothesis .import_linter_cache .schemathesis
	@find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
