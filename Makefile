# make demo | test | check | lint | format | bench | readme | gpu-check | gpu-bench | wheel | wheel-check
#      install | clean
#
#   make test                           creates .venv, installs tested versions, builds, runs
#   make test PYTHON=python3.12         ... with this Python
#   make test TORCH="torch==2.11.0"     ... with this torch (anything that pip install takes, options included)
#   make test PYTHON=/env/bin/python VENV=     in an existing environment as it is: nothing is installed or downloaded
#   make gpu-check                      builds, then checks every kernel on the GPU here; at most 8 minutes
#   make gpu-bench                      races rivals there, at most 9 minutes a call: each goes on where the last stopped
#   make gpu-bench SIZES="128x100 4096x1000" RIVALS="plain compile"     those alone (RIVALS=none: no rival)
#   make wheel                          dist/: a wheel for CPUs, and where there is an nvcc (ICM_FAST_CUDA=0: not even
#                                       there) one with the CUDA library too, for every Python and torch that works
#   make wheel-check CELLS="3.12:2.11 3.13:2.15"     tries them in fresh environments of these Pythons and torches

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PIP_VERSION := 26.3

VENV := $(strip $(VENV))
ifeq ($(VENV),)
  PY := $(PYTHON)
  CLANG_FORMAT := clang-format
else
  PY := $(VENV)/bin/python
  CLANG_FORMAT := $(VENV)/bin/clang-format
  # Another PYTHON or TORCH asks for another environment; their checksum in the name makes the old stamp stale.
  CHOICE := $(shell printf '%s' '$(PYTHON) $(TORCH)' | cksum | cut -d ' ' -f 1)
  TORCH_STAMP := $(VENV)/.torch-$(CHOICE)
  TOOLS_STAMP := $(VENV)/.tools
  INSTALL_STAMP := $(VENV)/.installed
  PEERS_STAMP := $(VENV)/.peers
endif

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.DELETE_ON_ERROR:
.PHONY: install build demo test check lint format bench readme gpu-check gpu-bench wheel wheel-check clean

install: build $(INSTALL_STAMP)

demo: install
	$(PY) -m benchmarks.accuracy demo

test: install
	$(PY) -m pytest -q --durations=10 -m "not long" tests

check: install $(PEERS_STAMP)
	$(PY) -m pytest -q --durations=10 -m long tests

# Rivals included, some thirty minutes on two idle cores; rewrites the measured parts of README.md. A part of it:
# python -m pytest benchmarks/speed -k "icm_loss and 1024x1000"
bench: install $(PEERS_STAMP)
	$(PY) -m pytest benchmarks/speed -q -rs --benchmark-json=benchmarks/results/cpu.json --benchmark-sort=mean \
	  --benchmark-columns=median,iqr,rounds
	$(PY) -m benchmarks.growth --out benchmarks/results/growth.json
	$(PY) -m benchmarks.speed.crossover --out benchmarks/results/crossover.json
	$(PY) -m benchmarks.speed.automatic --out benchmarks/results/automatic.json
	$(PY) -m benchmarks.processes --out benchmarks/results/processes.json
	$(PY) -m benchmarks.readme

# The demo's evidence and the picture of the idea, as README.md shows them.
readme: install
	$(PY) -m benchmarks.accuracy demo --out benchmarks/results/digits
	$(PY) -m benchmarks.accuracy.idea
	$(PY) -m benchmarks.readme

# On a machine with a GPU. GPU_CHECK_OUT, GPU_BENCH_OUT: other files than those in benchmarks/results; COMMIT: what is
# checked, where there is no git. Both build by themselves: for that GPU alone, within their time, and a failure of the
# build does not hide the rest.
gpu-check: $(TOOLS_STAMP)
	$(PY) -m benchmarks.gpu check $(if $(GPU_CHECK_OUT),--out $(GPU_CHECK_OUT)) $(if $(COMMIT),--commit $(COMMIT))

gpu-bench: $(TOOLS_STAMP)
	$(PY) -m benchmarks.gpu bench $(if $(SIZES),--sizes $(SIZES)) $(if $(RIVALS),--rivals $(RIVALS)) \
	  $(if $(GPU_BENCH_OUT),--out $(GPU_BENCH_OUT)) $(if $(COMMIT),--commit $(COMMIT)) $(if $(AGAIN),--again)

# One version alone is left there, so that wheel-check knows what it checks.
wheel: $(TOOLS_STAMP)
	rm -f dist/icm_fast-*.whl
	PYTHONPATH=csrc $(PY) -m icm_build.wheel build

# Each cell downloads torch with all that it depends on, some gigabytes, and deletes it afterwards.
wheel-check: wheel
	$(PY) -m benchmarks.wheel dist/icm_fast-*.whl $(if $(CELLS),--cells $(CELLS))

lint: $(TOOLS_STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(SOURCES),$(CLANG_FORMAT) --dry-run -Werror $(SOURCES))
	$(PY) -m mypy icm_fast benchmarks csrc/icm_build

format: $(TOOLS_STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(if $(SOURCES),$(CLANG_FORMAT) -i $(SOURCES))

# Always run: it compiles only what changed, and unlike make it also sees changed flags, compilers and torch.
build: $(TOOLS_STAMP)
	$(PY) setup.py -q build_ext --inplace

clean:
	rm -rf build dist icm_fast/lib icm_fast.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find csrc icm_fast benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq ($(VENV),)
$(TORCH_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "icm_fast: ERROR: Python >= 3.10 is needed; '$(PYTHON)' is not. Choose one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "icm_fast: ERROR: '$(PYTHON) -m venv' failed (Debian and Ubuntu: install python3-venv)," \
	         "or use an existing environment: make PYTHON=/env/bin/python VENV=" >&2; exit 1; }
	$(PY) -m pip install -q --upgrade pip==$(PIP_VERSION)
	@echo '$(PY) -m pip install $(TORCH)'; $(PY) -m pip install -q $(TORCH) || \
	  { echo "icm_fast: ERROR: no '$(TORCH)' could be installed for this Python and platform." \
	         "Choose another (make TORCH=\"torch==2.12.0\"), another Python (make PYTHON=python3.12)," \
	         "or an environment that has torch (make PYTHON=/env/bin/python VENV=)." >&2; exit 1; }
	@touch $@

$(TOOLS_STAMP): $(TORCH_STAMP) requirements-dev.txt
	$(PY) -m pip install -q -r requirements-dev.txt
	@touch $@

# Without them the tests that need them are skipped, and say so.
$(PEERS_STAMP): $(TOOLS_STAMP) requirements-peers.txt
	-$(PY) -m pip install -q --no-deps -r requirements-peers.txt && touch $@

# After the build, so that pip, which hides what a build says, has nothing left to compile.
$(INSTALL_STAMP): $(TOOLS_STAMP) pyproject.toml setup.py | build
	PYTHONWARNINGS=ignore $(PY) -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@
endif
