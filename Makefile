# Every target works on a fresh clone: the virtual environment is made when first needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
CONSTRAINTS ?= constraints-cpu.txt

.DEFAULT_GOAL := help
.PHONY: help venv hooks demo demo-all demo-pretrain demo-ablation demo-detector demo-detector-recipe demo-images demo-features demo-vivo app test-app train evaluate predict test lint docs bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Overrides go in ARGS, e.g. make train ARGS='data.use_tags=false trainer.max_epochs=3'."

$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: vinvl needs Python 3.11 or later and $(PYTHON) is older: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[test,lint,docs]'
	@touch $@

venv: $(STAMP)  ## create .venv with everything installed (CPU build of torch)

hooks: $(STAMP)  ## check what lint checks before each commit (pre-commit)
	$(BIN)/pre-commit install

demo: $(STAMP)  ## generate the demo world, train and evaluate VQA on it, print the result table
	$(BIN)/python scripts/demo.py $(ARGS)

demo-all: $(STAMP)  ## train every task briefly on the demo world, print one table
	$(BIN)/python scripts/demo_all.py $(ARGS)

demo-pretrain: $(STAMP)  ## pre-train on the demo world, fine-tune VQA with and without it, print one table
	$(BIN)/python -m vinvl.pretrain_finetune --multirun objective=none,three_way $(ARGS)

demo-ablation: $(STAMP)  ## compare four pre-training objectives, with and without tags: pre-train, fine-tune, print one table
	$(BIN)/python -m vinvl.pretrain_finetune --multirun objective=none,no_contrast,two_way,three_way tags=true,false $(ARGS)

demo-detector: $(STAMP)  ## train a small detector on the demo world's pictures, unless it exists, and print how good it is
	$(BIN)/python scripts/demo_detector.py $(ARGS)

demo-detector-recipe: $(STAMP)  ## four data sets merged, a detector trained on them and tuned with attributes, against one set alone: one table
	$(BIN)/python scripts/demo_detector_recipe.py $(ARGS)

demo-images: $(STAMP)  ## pictures → that detector → features → VQA → a question answered; the accuracy next to that of the demo's own regions
	$(BIN)/python scripts/demo_images.py $(ARGS)

demo-features: $(STAMP)  ## regions as rendered, of that detector and of a badly trained one, with and without pre-training: one table
	$(BIN)/python scripts/demo_features.py $(ARGS)

demo-vivo: $(STAMP)  ## objects that no caption names, with and without VIVO pre-training, over three seeds: one table
	$(BIN)/python scripts/demo_vivo.py $(ARGS)

# What the page needs beyond the environment is installed when it is first wanted.
$(VENV)/.installed-app: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[app,app-test]'
	@touch $@

app: $(VENV)/.installed-app  ## after make demo-images: the page in the browser to ask the demo's pictures
	$(BIN)/python scripts/demo_app.py $(ARGS)

test-app: $(VENV)/.installed-app  ## test that page in a real Chromium, which must be installed
	VINVL_TEST_APP=1 $(BIN)/python -m pytest tests/app $(ARGS)

train: $(STAMP)  ## python -m vinvl.train $(ARGS)
	$(BIN)/python -m vinvl.train $(ARGS)

evaluate: $(STAMP)  ## python -m vinvl.evaluate $(ARGS): score a checkpoint
	$(BIN)/python -m vinvl.evaluate $(ARGS)

predict: $(STAMP)  ## python -m vinvl.predict $(ARGS): answer a split's questions
	$(BIN)/python -m vinvl.predict $(ARGS)

# Bytecode is kept, wherever the environment says otherwise: tests start many processes.
test: $(STAMP)  ## run the tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)  ## ruff, mypy, and whether the pages of docs/ build
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict

# Without --quiet, which would hide the warnings that --strict counts.
docs: $(STAMP)  ## build the pages of docs/ as a site
	$(BIN)/mkdocs build --strict
	@echo "site/index.html"

bench: $(STAMP)  ## measure reads, conversion, extraction, steps, the feed, decoding, scoring, scaling (see docs/benchmarks.md)
	$(BIN)/python benchmarks/store_reads.py
	$(BIN)/python benchmarks/feature_conversion.py
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/detector_step.py
	$(BIN)/python benchmarks/vqa_step.py
	$(BIN)/python benchmarks/vqa_step.py --forward
	$(BIN)/python benchmarks/attention_ways.py
	$(BIN)/python benchmarks/pretraining_step.py --batch-size 16 --rounds 2
	$(BIN)/python benchmarks/vqa_feed.py
	$(BIN)/python benchmarks/pretraining_feed.py
	$(BIN)/python benchmarks/tokenizing.py
	$(BIN)/python benchmarks/corpus_memory.py
	$(BIN)/python benchmarks/store_scale.py
	$(BIN)/python benchmarks/caption_decoding.py
	$(BIN)/python benchmarks/retrieval_scoring.py
	$(BIN)/python benchmarks/ddp_step.py
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) matplotlib
	$(BIN)/python benchmarks/cost_scaling.py

# On a machine with a GPU whose own torch is installed; PYTHON names it, e.g. make bench-gpu PYTHON=python.
bench-gpu:  ## the same on a GPU, at sizes that fill it
	$(PYTHON) benchmarks/vqa_step.py --batch-size 256 --steps 10
	$(PYTHON) benchmarks/vqa_step.py --batch-size 1024 --steps 10 --ways padded,ours --compile
	TORCHINDUCTOR_CPP_WRAPPER=1 $(PYTHON) benchmarks/vqa_step.py --batch-size 128 --steps 20 --ways padded,ours --compile
	$(PYTHON) benchmarks/vqa_step.py --batch-size 512 --steps 10 --forward --ways padded_float32,padded,ours
	$(PYTHON) benchmarks/pretraining_step.py --batch-size 256 --rounds 20 --rows 40000 --workers 8
	$(PYTHON) benchmarks/pretraining_step.py --batch-size 1024 --rounds 40 --rows 250000 --images 5000 --workers 8 --ways 0 --compile
	$(PYTHON) benchmarks/pretraining_feed.py --rows 100000 --images 5000 --batch-size 1024 --workers 1 4 8
	$(PYTHON) benchmarks/retrieval_scoring.py --images 16 --captions 1000 --rows 256 --block 8
	$(PYTHON) benchmarks/caption_decoding.py --images 64 --rounds 3 --precision float32 --searches beam sample train
	$(PYTHON) benchmarks/caption_decoding.py --images 64 --rounds 3 --precision bfloat16 --searches beam sample train
	$(PYTHON) benchmarks/vqa_feed.py --workers 0 1 2 4 8
	$(PYTHON) benchmarks/extraction.py --batch-size 8 --pictures 32 --workers 8 --stream 512 --ways published,ours,ours+half,ours+half+contiguous,ours+half+compiled
	$(PYTHON) benchmarks/extraction.py --batch-size 16 --pictures 32 --workers 12 --stream 1024 --ways ours+half,ours+half+compiled
	$(PYTHON) benchmarks/detector_step.py --device cuda --pictures 2 --steps 10 --half
	$(PYTHON) benchmarks/attention_ways.py --sequences 256 --flex
	for task in vqa captioning scst retrieval pretraining; do \
		$(PYTHON) benchmarks/door.py --task $$task --steps 300 --eval-batches 60 trainer=gpu data.num_workers=8 || exit 1; done

clean:  ## remove the demo world, its detector, caches and build products; runs/ and .venv stay
	rm -rf data/demo data/demo_detector data/demo_detection_sets data/demo_detector_recipe build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
