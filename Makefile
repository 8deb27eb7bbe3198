PYTHON ?= python3
VENV ?= .venv
RUN := runs/demo
SEEDS ?= 0 1 2
HELD_OUT := synthetic-0032
BIN := $(VENV)/bin
# said here so that Accelerate asks for no configuration of the machine
LAUNCH := --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo seeds browser page test docs lint release audit benchmarks lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/'

install: $(VENV)/installed  ## a virtual environment with the locked versions

$(VENV)/installed: requirements.lock setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: install  ## synthetic corpus (of the Hub: HUB=name/dataset), training in three stages, comparison, timeline of a video
	$(BIN)/python scripts/make_synthetic.py $(RUN)/corpus $(if $(HUB),--hub '$(HUB)')
	$(BIN)/python scripts/prepare_affwild2.py $(RUN)/corpus $(RUN)/prepared
	$(BIN)/accelerate launch $(LAUNCH) scripts/train.py recipes/demo.yaml
	$(BIN)/python scripts/ablate.py recipes/demo.yaml
	$(BIN)/python scripts/evaluate.py $(RUN)/seed-0/fusion $(RUN)/prepared \
	  --cache $(RUN)/cache --output $(RUN)/metrics.json
	$(BIN)/python scripts/predict.py $(RUN)/corpus/batch1/$(HELD_OUT).mp4 --model $(RUN)/seed-0/fusion \
	  --out $(RUN)/timeline --save csv plot overlay --explain --overwrite \
	  --annotation $(RUN)/corpus/VA_Estimation_Challenge/Validation_Set/$(HELD_OUT).txt

seeds: install  ## the comparison table over several seeds (SEEDS="0 1 2")
	$(BIN)/python scripts/make_synthetic.py $(RUN)/corpus $(if $(HUB),--hub '$(HUB)')
	$(BIN)/python scripts/prepare_affwild2.py $(RUN)/corpus $(RUN)/prepared
	$(BIN)/python scripts/ablate.py recipes/demo.yaml --seeds $(SEEDS)

browser:  ## a Chromium for the tests of the page (Debian, Ubuntu; needs root)
	apt-get update -qq
	apt-get install -qq -y --no-install-recommends chromium-headless-shell

page: install  ## the tests of the page in that browser: they play videos, and want the cores for themselves
	JCA_BROWSER=1 $(BIN)/python -m pytest tests/test_app.py

test: install  ## all other tests
	$(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/test_backends.py
	# OpenVINO does not bear that a process which has loaded it forks under pytest-xdist
	$(BIN)/python -m pytest tests/test_backends.py

docs: install  ## the site of guides and reference, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: install  ## style, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/mypy

release: install  ## wheel and sdist in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_release.py tests/test_packaging.py

audit:  ## known vulnerabilities of the versions that are locked for this Python
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'
	build/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

# those that need no GPU and no trained model
TABLES := fusions/loop fusions/growth fusions/parameters data/listing data/extraction data/epoch training/loops \
  training/processes encoders/speed pipeline/stages pipeline/speed pipeline/memory
benchmarks: install  ## the tables of benchmarks/, as JSON too in build/benchmarks: an hour of two cores that do nothing else
	mkdir -p $(addprefix build/benchmarks/,$(sort $(dir $(TABLES))))
	set -e; for table in $(TABLES); do \
	  echo; echo "python benchmarks/$${table%/*}.py $${table#*/}"; \
	  $(BIN)/python benchmarks/$${table%/*}.py $${table#*/} --json build/benchmarks/$$table.json; \
	done

lock:  ## choose versions anew (needs uv)
	echo 'torch==2.13.0' > constraints.tmp
	{ head -2 requirements.lock; uv pip compile setup.py --extra dev --universal --python-version 3.10 --no-annotate \
	  --no-header --quiet --constraint constraints.tmp | grep -vE '^(nvidia|cuda|triton)'; } > lock.tmp
	mv lock.tmp requirements.lock; rm constraints.tmp

clean:  ## remove what `make` made
	rm -rf $(VENV) runs build dist
