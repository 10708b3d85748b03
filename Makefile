PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format clean

# Trains Gated and baseline SAEs on the embedded language model; open runs/demo/report.html.
DEMO_OUT ?= runs/demo
demo: $(INSTALLED)
	$(VENV)/bin/penstock sweep --model embedded --sites resid_post.2 --archs gated relu \
	  --target-l0 4 8 16 32 --d-sae 1024 --batch-size 512 --tokens 1536000 --cache-tokens 512000 \
	  --eval-tokens 50000 --out $(DEMO_OUT)

test: $(INSTALLED)
	$(VENV)/bin/pytest

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)
