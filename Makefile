# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install into .venv first.
# `make` alone lists the targets with the text behind their ##.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without bytecode, which takes half of an installation: each module is compiled when it is first imported, most never are.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile
CODE := reca_fast kernels bench tests setup.py
PYTEST = $(BIN)/python -m pytest $(if $(K),-k '$(K)') $(FILE)
XDIST := --numprocesses auto --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-fast lint format bench versions clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/installed  ## RECA on the toy world, measured before and after: four minutes at most, no GPU, no download of models; SEED=1
	$(BIN)/python -m reca_fast.demo $(if $(SEED),--seed $(SEED))

test: $(VENV)/installed-dev  ## the tests; FILE=tests/data takes those of a folder or file, K='resume and not gpu' those of such names
	$(PYTEST) -m 'not exhaustive' $(if $(FILE),,$(XDIST))

test-all: $(VENV)/installed-dev  ## also every combination that `make test` takes samples of, and more damage; FILE, K
	RECA_FAST_MUTATIONS=25 $(PYTEST) $(if $(FILE),,$(XDIST))

test-fast: $(VENV)/installed-dev  ## the tests that need neither processes of their own nor seconds each: about a minute; FILE, K
	$(PYTEST) -m 'not slow' $(if $(FILE),,$(XDIST))

lint: $(VENV)/installed-dev  ## what has to be clean before a change lands: ruff and mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/installed-dev  ## bring the code into the form that `make lint` asks for
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/installed-dev  ## kernels, the training step and the data path beside their rivals: several minutes
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/step.py
	$(BIN)/python -m bench.images

versions: $(VENV)/installed-dev  ## the suite at the lowest, the pinned and the newest versions: hours, and gigabytes of downloads
	$(BIN)/python tests/versions.py

clean:  ## remove the environment, builds and runs
	rm -rf $(VENV) build runs *.egg-info

# constraints.txt pins the set that the tests have passed with, a torch with the Triton that its CUDA build demands;
# without it pip takes the newest of each range.
$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt --editable '.[demo]'
	touch $@

# xformers goes to a folder of its own: its bias objects are tested on a CPU, its kernels would ask for another torch.
$(VENV)/installed-dev: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt --editable '.[demo,dev]'
	$(INSTALL) --no-deps --target $(VENV)/xformers --upgrade xformers==0.0.35
	touch $(VENV)/installed $@
