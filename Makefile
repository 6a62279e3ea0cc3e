# make demo, make figures, make test: each makes the environment it needs. VENV=… uses another one.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
VENV ?= .venv
PYTHON ?= python3
BIN = $(abspath $(VENV))/bin
READY = $(VENV)/.semeda-installed
export PYTHONPATH := $(CURDIR)
export PYDEVD_DISABLE_FILE_VALIDATION = 1
NUMBERED = $(wildcard nbs/0*.ipynb)

.PHONY: demo figures table1 table2 table-losses figure5 bench test lab docs readme clean install

install: $(READY)

$(READY): settings.ini setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

DEMO = runs/demo
# progress and errors of the notebook, without ipykernel's remark on local sockets
PAPERMILL = $(BIN)/papermill --log-output --log-level WARNING --no-progress-bar
QUIET = 2>&1 | sed -u '/IPKernelApp/d'
# a report shows results without code, and without the cells that say how the notebook is used
REPORT = $(BIN)/jupyter nbconvert --log-level WARN --to html --template classic --no-input --no-prompt --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags usage

demo: $(READY)
	@rm -rf $(DEMO)/scenes-*; mkdir -p $(DEMO)
	@for loss in ppce semeda; do \
	  echo "training with $$loss"; \
	  $(PAPERMILL) nbs/train.ipynb $(DEMO)/train-$$loss.ipynb -p loss $$loss -p runs "$(CURDIR)/$(DEMO)" $(QUIET); \
	done
	@echo "comparing"
	@$(PAPERMILL) nbs/compare.ipynb $(DEMO)/compare.ipynb -p run_folders "$(CURDIR)/$(DEMO)/scenes-ppce-s0,$(CURDIR)/$(DEMO)/scenes-semeda-s0" $(QUIET)
	@cp $(DEMO)/compare.ipynb "$(DEMO)/PPCE and SEMEDA on scenes.ipynb" # the page's title
	@$(REPORT) --output report "$(DEMO)/PPCE and SEMEDA on scenes.ipynb"
	@echo; cat $(DEMO)/comparison.md; echo; echo "report: $(CURDIR)/$(DEMO)/report.html"

# the paper's figures from the runs of make demo, each in a process of its own; a thread each, since more only get in one another's way on small images
figures: $(READY)
	@mkdir -p runs/figures
	@for notebook in nbs/paper/figure*.ipynb; do \
	  name=$$(basename $$notebook .ipynb); echo "rendering $$name"; \
	  OMP_NUM_THREADS=1 $(PAPERMILL) $$notebook runs/figures/$$name.ipynb $(QUIET); \
	done
	@echo; ls "$(CURDIR)"/runs/figures/*.png

# a sweep: make table1 STUDY=camvid SEMEDA_DATA=folder JOBS=2 SNAKEMAKE_ARGS='--dry-run'
STUDY = smoke
JOBS = 2
table2: STUDY = table2
table1 table2 figure5: $(READY)
	$(BIN)/python -m snakemake $@ --configfile semeda/study/studies/$(STUDY).yaml --cores $(JOBS) $(SNAKEMAKE_ARGS)

# which loss for my boundaries: the runs that have no result yet, then the page; LOSSES=losses_short SEMEDA_DATA=folder JOBS=2
LOSSES = losses
table-losses: $(READY)
ifdef SEMEDA_DATA
	-$(BIN)/python -m semeda.study run $(LOSSES) --parallel $(JOBS)
else
	@echo "SEMEDA_DATA is not set: the page is made from results/ alone"
endif
	$(BIN)/python -m semeda.study table table_losses

# every benchmark on the CPU, about 25 minutes; others by hand: python -m benchmarks loss step --device cuda
bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

test: $(READY)
	$(BIN)/ruff check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test nbs --file-re '^0' --n-workers 2

lab: $(READY)
	$(BIN)/jupyter lab nbs/index.ipynb

docs: $(READY)
	@command -v quarto >/dev/null || { echo "docs need Quarto, which is not on the PATH: see https://quarto.org/docs/get-started/ for your system, then run 'make docs' again" >&2; exit 1; }
	$(BIN)/nbdev-docs

# README.md is the index notebook as Markdown
readme: $(READY)
	$(BIN)/python -m tests.readme

clean:
	rm -rf runs _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
