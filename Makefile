# Two commands do everything: `make demo` and `make test`. They need Python >= 3.11 and make, nothing else.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# The first Python that is new enough and can make a virtual environment.
FIND_PYTHON = for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; import ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done

DATA := $(wildcard ../shared/data)
ifneq ($(DATA),)
export MLLM_ALIGN_DATA ?= $(abspath $(DATA))
endif

.PHONY: demo test lint

demo: $(STAMP)
	$(BIN)/mllm-align demo --overwrite $(DEMO_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(TEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(STAMP): pyproject.toml constraints.txt
	@python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then echo "mllm_align needs Python 3.11 or newer with its venv module; none was found" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$($$python --version)"; $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)
