# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench versions clean

demo: $(VENV)/installed
	$(BIN)/python -m reca_fast.demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

lint: $(VENV)/installed-dev
	$(BIN)/ruff check reca_fast kernels bench tests setup.py
	$(BIN)/ruff format --check reca_fast kernels bench tests setup.py
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/bagel_step.py
	$(BIN)/python -m bench.images

# The suite at the lowest, the pinned and the newest versions: hours, and gigabytes of downloads.
versions: $(VENV)/installed-dev
	$(BIN)/python tests/versions.py

# constraints.txt pins the set that the tests have passed with, a torch with the Triton that its CUDA build demands;
# without it pip takes the newest of each range.
$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

# xformers goes to a folder of its own: its bias objects are tested on a CPU, its kernels would ask for another torch.
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/xformers xformers==0.0.35
	touch $@

clean:
	rm -rf $(VENV) build runs *.egg-info
