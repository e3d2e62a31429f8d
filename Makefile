# `make` lists the targets. Each sets up .venv itself; a second run is quick.
# PYTHON=/path/to/python3 chooses the Python to make .venv with; EPOCHS=5 and OUT=folder change the demo.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# Paths below are relative, so the folder of the checkout may have spaces in its name.
PYTHON_HERE := .venv/bin/python
EXTRAS_demo := data,viz,demo
EXTRAS_audit := audit,data,viz,onnx,sklearn,half,demo
EPOCHS := 60
OUT := runs/demo

.PHONY: help demo test lint unit compiler docs gate bench mutants shapes faults soak fuzz hostile audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready-demo ## train LeNet-5 on real handwritten digits and show what came out
	@if [ -e '$(OUT)/run.json' ]; then resume=--resume; fi; \
	$(PYTHON_HERE) -m gpucnn train mnist-5k --epochs $(EPOCHS) --out '$(OUT)' $$resume
	@printf "\nTo have the command gpucnn in this shell: . .venv/bin/activate\nThen gpucnn demo opens a page to draw digits on and to look inside the network.\n"

# Hundreds of processes import the package and the tests: with their bytecode kept, in half of the time.
test: export PYTHONDONTWRITEBYTECODE :=
test: compiler .venv/.ready-test ## lint, types and tests, as CI runs them
	@$(MAKE) --no-print-directory -j 2 lint unit

lint: .venv/.ready-test
	$(PYTHON_HERE) -m ruff check .
	$(PYTHON_HERE) -m ruff format --check .
	$(PYTHON_HERE) -m mypy
	$(PYTHON_HERE) bench/compile_gate.py --check

# Three processes share the cores: more threads of OpenBLAS would but spin while they wait for each other.
unit: export OPENBLAS_NUM_THREADS := 1
unit: .venv/.ready-test compiler
	$(PYTHON_HERE) -m pytest -n 3 --dist worksteal

# The kernels are run on the CPU, compiled by the first of these that is found (gpucnn/devices/emulator.py).
compiler:
	@for name in "$$CXX" g++ c++; do \
		if [ -n "$$name" ] && command -v "$$name" >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing g++: the tests run the kernels on the CPU"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq -y --no-install-recommends g++ >/dev/null && exit 0; \
	fi; \
	echo "the tests run the kernels on the CPU: install g++ (Debian: apt-get install g++), or set CXX" >&2; \
	exit 1

docs: .venv/.ready-docs ## build the site of docs/ into site/, a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON_HERE) -m mkdocs build --strict
	@printf "\nOpen site/index.html. To search too, serve it: $(PYTHON_HERE) -m http.server --directory site\n"

gate: .venv/.ready-test ## compile the kernels that changed for every architecture; rewrite their tables in docs
	$(PYTHON_HERE) bench/compile_gate.py

bench: .venv/.ready-bench ## time every op and network here (10 minutes); BENCH="--quick" passes options on
	$(PYTHON_HERE) -m gpucnn bench $(BENCH)

mutants: .venv/.ready-test ## change the kernels in hundreds of small ways: how many do the tests notice? (an hour)
	nice -n 19 $(PYTHON_HERE) bench/mutants.py

shapes: .venv/.ready-test ## convolutions and products of random shapes, by random kernels (5 minutes)
	nice -n 19 $(PYTHON_HERE) bench/random_shapes.py

faults: .venv/.ready-test ## kill a training 200 times, fill its disk, lock its folder: is anything lost? (2 minutes)
	nice -n 19 $(PYTHON_HERE) bench/faults.py

soak: .venv/.ready-test ## 20,000 steps, and what else is repeated for long: does anything pile up? (2 minutes)
	nice -n 19 $(PYTHON_HERE) bench/long_run.py

fuzz: .venv/.ready-test ## give every parser thousands of damaged and lying files (5 minutes)
	nice -n 19 $(PYTHON_HERE) bench/fuzz.py

hostile: .venv/.ready-test ## call everything public with odd arrays and arguments, 300 times each (10 minutes)
	nice -n 19 $(PYTHON_HERE) bench/hostile_input.py

audit: .venv/.ready-audit ## compare the packages in .venv with PyPI's known vulnerabilities
	$(PYTHON_HERE) bench/audit.py

clean: ## remove .venv, caches and build outputs; runs/ stays
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than what it was made from when the requirements have changed.
.venv/.ready-%: .venv/pyvenv.cfg pyproject.toml
	@echo "installing gpucnn with what 'make $*' needs into .venv (up to a minute)"
	@$(PYTHON_HERE) -m pip install --quiet --disable-pip-version-check -e ".[$(or $(EXTRAS_$*),$*)]"
	@touch $@

.venv/pyvenv.cfg:
	@for candidate in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14; do \
		[ -n "$$candidate" ] || continue; \
		"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "making .venv with $$("$$candidate" --version)"; \
		"$$candidate" -m venv .venv && exit 0; \
		rm -rf .venv; \
		echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	done; \
	echo "gpucnn needs Python 3.11 or newer; python3 is $$(python3 --version 2>&1). Set PYTHON=/path/to/python3" >&2; \
	exit 1
