# One-word targets for the three uses: generate and synthesise, train, co-simulate.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
DESIGN ?= sim-small
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test test-slow generate csim cosim synth bench train docs lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

setup: $(STAMP)  ## create the virtual environment

demo: $(STAMP)  ## train a small ResNet with every product on the simulated fabric, and report
	$(BIN)/fractrain demo --out runs/demo

test: $(STAMP)  ## run the fast tests, lint and type checks
	$(BIN)/ruff check .
	$(BIN)/mypy hw host sw_model fractrain.py
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(STAMP)  ## run the long tests too
	$(BIN)/python -m pytest -m 'slow or not slow'

generate: $(STAMP)  ## render the design named DESIGN into build/DESIGN
	$(BIN)/fractrain generate --design $(DESIGN) --out build/$(DESIGN)

csim: $(STAMP)  ## check the HLS C++ against the software quantizers and products
	$(BIN)/fractrain csim --design $(DESIGN)

cosim: $(STAMP)  ## check the RTL under cocotb against the software quantizers and products
	$(BIN)/fractrain cosim --design $(DESIGN)

synth: $(STAMP)  ## synthesise the RTL with Yosys and print the area
	$(BIN)/fractrain synth --design $(DESIGN)

# its lanes hold a row of 32 pixels, its buffers every layer of ResNet-38
bench: DESIGN = zc706
bench: $(STAMP)  ## measure cycles of ResNet-38's products on the RTL, and the area (DESIGN=zc706 unless given)
	$(BIN)/fractrain bench engine --design $(DESIGN)
	$(BIN)/fractrain synth --design $(DESIGN)

train: $(STAMP)  ## train on handwritten digits, products on the simulated fabric
	$(BIN)/fractrain train --device rtl --data digits

docs: $(STAMP)  ## build the pages as a site, build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(STAMP)  ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/mypy hw host sw_model fractrain.py

clean:  ## remove generated files (not the virtual environment)
	rm -rf build runs .pytest_cache .hypothesis .ruff_cache .mypy_cache
