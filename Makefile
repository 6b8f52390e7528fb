# `make demo` and `make test` set everything up by themselves: they need Python 3.11.5 or newer, and make.
PYTHON ?= python3.11
JOBS ?= 2
ON := $(if $(GPU),-gpu)
BIN := .venv/bin
STAMP := .venv/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install demo tiny claim claim-ablations test test-slow test-gpu lint docs base clean

install: $(STAMP)

# torch first: the rest must meet it there and not choose another one.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "make: there is no $(PYTHON): make PYTHON=/path/to/python3.11, 3.11.5 or newer"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(f'{sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11, 3.11.5 or newer' if sys.version_info < (3, 11, 5) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: install
	$(BIN)/rank-e run

# The same pipeline at its smallest, in a minute or two.
tiny: install
	$(BIN)/rank-e profile tiny
	$(BIN)/rank-e run

# What README says of the embedded world: five seeds, hours on two cores; stop it and start it again as you like.
# With a GPU minutes: `make claim GPU=1 JOBS=8`.
claim: install
	$(BIN)/rank-e profile claim$(ON)
	$(BIN)/rank-e run --jobs $(JOBS)
	$(BIN)/rank-e claim
	$(BIN)/python -m docs.generated

# What each part of the method is worth: the first four arms on two cores, all of them with GPU=1.
claim-ablations: install
	$(BIN)/rank-e profile claim-ablations$(ON)
	$(BIN)/rank-e run --jobs $(JOBS)
	$(BIN)/rank-e claim --name ablations

test: install
	$(BIN)/python -m pytest -q

# What `make test` leaves out: the whole pipeline from end to end, on every backbone.
test-slow: install
	$(BIN)/python -m pytest -q -m slow

# The stages, and LlamaGen-XL and Janus-Pro-1B in one step each, on a CUDA device.
test-gpu: install
	$(BIN)/python -m pytest -q -n 0 -m gpu tests/gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# The pages that are made from the source, then docs/ as a site in site/, every link and anchor checked.
docs: install
	$(BIN)/python -m docs.generated
	$(BIN)/python -m mkdocs build

# The embedded world's base from nothing (an hour and a half on one core), compared with the one in assets/shapes.
base: install
	$(BIN)/dvc --cd base repro
	$(BIN)/python -m base.train compare

clean:
	rm -rf artifacts report site .rank-e mlflow.db mlruns dvc_plots .mypy_cache .pytest_cache .ruff_cache
