# make demo: the main job on real data. make test: every check. Both create .venv first; a second call is instant.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test coverage setup bench-accuracy bench-speed bench-acquisition bench-thrift bench-pool bench-store bench-memory bench-report bench-explore bench-tracking docs clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "temperflow needs Python 3.11 or newer")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/temperflow run examples/hudson_bay.yaml
	@echo
	@echo "Open runs/hudson_bay/report.html in a browser; '$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db' lists the run."

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Which lines no test runs.
coverage: setup
	$(BIN)/python -m pytest --cov=simulators --cov=learners --cov=orchestrator --cov-report=term:skip-covered

# Days on two cores for all tasks, budgets and seeds; cells that are in benchmarks/accuracy.parquet are not run again.
bench-accuracy: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.accuracy $(ARGS)

# Half an hour: training and draws beside sbi's.
bench-speed: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.speed $(ARGS)

# Hours: a campaign a cell; cells that are in benchmarks/acquisition.parquet are not run again.
bench-acquisition: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.acquisition $(ARGS)

# Hours: what choosing saves where the cost depends on theta; cells in benchmarks/thrift.parquet are not run again.
bench-thrift: setup
	$(BIN)/python -m benchmarks.thrift $(ARGS)

# Two minutes; best on a machine that does nothing else.
bench-store: setup
	$(BIN)/python -m benchmarks.store $(ARGS)

# Two minutes: the memory of a campaign of a million simulations of a hundred numbers.
bench-memory: setup
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-pool: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.pool $(ARGS)
	$(BIN)/python -m benchmarks.scaling

# A minute: the report of a million simulations.
bench-report: setup
	$(BIN)/python -m benchmarks.report $(ARGS)

# A minute, with Chromium: moves of the explorer's slider.
bench-explore: setup
	$(BIN)/python -m benchmarks.explore $(ARGS)

# Ten minutes, with wrk; best on a machine that does nothing else.
bench-tracking: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[serve]"
	$(BIN)/python -m benchmarks.tracking $(ARGS)

docs: setup
	$(BIN)/python -m orchestrator.config_docs > docs/configuration.md

clean:
	rm -rf .venv runs mlflow.db mlartifacts
