PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
BENCH_VENV ?= .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed

.PHONY: demo test check format bench gpu docs clean

# Trains Gated and ReLU SAEs, three seeds each, on the embedded language model; open runs/demo/report.html.
DEMO_OUT ?= runs/demo
demo: $(INSTALLED)
	$(VENV)/bin/penstock sweep --model embedded --site resid_post.2 --arch gated relu --seed 0 1 2 \
	  --target-l0 8 16 32 --d-sae 1024 --batch-size 512 --tokens 768000 --cache-tokens 384000 --model-batch-rows 8 \
	  --eval-tokens 50000 --out $(DEMO_OUT)

# On all cores. Idle workers take tests from the end of another's queue, so that a module's stay together with its fixtures.
test: $(INSTALLED)
	$(VENV)/bin/pytest --numprocesses auto --dist worksteal

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Times penstock beside the peers (benchmarks/README.md); BENCH_THREADS=2 fixes the threads of everything.
BENCH := TQDM_DISABLE=1 $(BENCH_VENV)/bin/python benchmarks
THREADS := $(if $(BENCH_THREADS),--threads $(BENCH_THREADS))
KEEP_BLOCKS := MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_THRESHOLD_=17179869184
bench: $(BENCH_INSTALLED)
	$(BENCH)/engine/import_time.py
	$(BENCH)/engine/step.py $(THREADS)
	$(KEEP_BLOCKS) $(BENCH)/engine/step.py $(THREADS) --name step_kept_blocks
	$(BENCH)/engine/memory.py $(THREADS)
	$(BENCH)/engine/scaling.py $(THREADS)
	$(BENCH)/engine/cuda_step.py $(THREADS)
	$(BENCH)/end_to_end/run.py
	$(BENCH)/convergence/run.py

# Checks and measures everything on a GPU (benchmarks/gpu/README.md), in at most 8 minutes.
gpu: $(BENCH_INSTALLED)
	$(BENCH_VENV)/bin/pip install --quiet pytest beartype
	TQDM_DISABLE=1 $(BENCH_VENV)/bin/python benchmarks/gpu/run.py

# The guide and API reference in site/; a broken link or an undocumented public name fails.
docs: $(INSTALLED)
	$(VENV)/bin/pytest -q tests/test_docs.py -k documented
	$(VENV)/bin/pip install --quiet --editable ".[docs]"
	$(VENV)/bin/zensical build --strict

clean:
	rm -rf $(VENV) $(BENCH_VENV) site

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

# dictionary-learning and nnsight ask for packages that training never touches: see the requirements file.
$(BENCH_INSTALLED): pyproject.toml constraints.txt benchmarks/recipes/requirements-peers.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --constraint constraints.txt \
	  --requirement benchmarks/recipes/requirements-peers.txt --editable ".[plots]"
	$(BENCH_VENV)/bin/pip install --quiet --no-deps dictionary-learning==0.1.0 nnsight==0.3.7
	touch $(BENCH_INSTALLED)
