# Each target makes .venv and installs what it needs by itself. The stamp files depend on pyproject.toml and
# constraints.txt, so nothing is installed again until one of them changes.
PYTHON ?= python3
WORKERS ?= 2
INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt

.PHONY: demo test test-slow lint format docs audit clean
.NOTPARALLEL:

demo: .venv/demo.stamp
	.venv/bin/unicoord-atlas demo

test: .venv/test.stamp
	.venv/bin/pytest -q -n $(WORKERS) -m "not slow"

test-slow: .venv/test.stamp
	.venv/bin/pytest -q -m slow

lint: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/dev.stamp
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: .venv/docs.stamp
	.venv/bin/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

# Known vulnerabilities of the pinned versions; asks PyPI.
audit: .venv/bin/pip-audit
	.venv/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find unicoord_atlas loaders jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/demo.stamp: EXTRAS = demo
.venv/docs.stamp: EXTRAS = docs
.venv/test.stamp: EXTRAS = demo,dask,docs,test
.venv/dev.stamp: EXTRAS = demo,dask,docs,test,dev
.venv/%.stamp: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) -e '.[$(EXTRAS)]'
	touch $@

.venv/bin/pip-audit: | .venv/bin/pip
	$(INSTALL) pip-audit

.venv/bin/pip:
	$(PYTHON) -m venv .venv
