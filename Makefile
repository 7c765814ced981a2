# Everything needs only Python 3.11+ with venv, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

# Settings of the demo site: make run PORT=27600 DIR=.demo SERVRC=file FIREWALL_PORTS=5860-5870
PORT ?= 27600
DIR  ?= .demo

.PHONY: run test check bench docs clean

run: $(VENV)/installed
	$(BIN)/gridnet demo --tour --dir $(DIR) --port-base $(PORT) \
	    $(if $(SERVRC),--servrc $(SERVRC)) \
	    $(if $(FIREWALL_PORTS),--firewall-ports $(FIREWALL_PORTS))

test: $(VENV)/installed-test
	$(BIN)/python -m twisted.trial $(TRIAL_FLAGS) tests

check: $(VENV)/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m twisted.trial tests.test_layering
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

docs: $(VENV)/installed-check
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(or $(SUBJECT),all)

clean:
	rm -rf $(VENV) .demo docs/_build build dist *.egg-info _trial_temp*

# A venv of our own: Debian's system Python refuses to be installed into.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml setup.py | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml setup.py | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-check: pyproject.toml setup.py | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	touch $@ $(VENV)/installed $(VENV)/installed-test
