PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIGHT := $(BIN)/python -c "import onnx.backend.test, pathlib; print(pathlib.Path(onnx.backend.test.__file__).parent / 'data/light/light_squeezenet.onnx')"

.PHONY: install demo paper docs test integrations test-all fuzz dist lint bench leaderboard peers coverage clean
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt tests/onnx_frontend/packages.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/onnx_frontend/packages.txt
	touch $@

demo: install  ## a real ONNX network to checked source, then a convolutional network trained both ways on digits
	$(BIN)/pccompile "$$($(LIGHT))" --backend torch --verify -o out/
	$(BIN)/python examples/digits.py --plot out/digits.png

paper: install  ## the experiments of arXiv:2006.04182 in their small setting, minutes: docs/paper.md
	OMP_NUM_THREADS=1 $(BIN)/python examples/reproduce_paper.py --small

docs: $(VENV)/docs  ## the site of docs/, every notebook executed and every warning an error: docs/_build/html/index.html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -n -E -b html docs docs/_build/html

$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

test: install  ## what is quick: of long tables of cases, a fixed part
	@command -v iverilog > /dev/null || echo "iverilog is absent (apt install iverilog): exported Verilog is not run" >&2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

integrations: install  ## the libraries of docs/ecosystem.md, and several processes: some minutes
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[integrations]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/integrations/packages.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/integrations

test-all: install  ## the long ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

fuzz: install  ## 20,000 ONNX files and 20,000 netlists, chips and data files that are wrong somewhere; the day is the seed
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz

dist: install  ## wheel and source archive: dist/
	$(BIN)/python -m build --no-isolation

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## time and memory of a training gradient, as ratios to autograd; a tick of the netlist simulator
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guards.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/netlist.py

leaderboard: install  ## all algorithms on the same networks, rows that are missing, for an hour: docs/leaderboard.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/leaderboard.py --time-limit 3600

peers: install  ## strict inference of other libraries on the same weights, each in an environment of its own: docs/peers.md
	$(BIN)/python benchmarks/peers.py

coverage: install  ## all suites of docs/coverage.md, anew
	for suite in torch onnx models; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/coverage.py $$suite --jobs 2 || exit 1; done

clean:
	rm -rf $(VENV) out build dist *.egg-info
