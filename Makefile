# make demo, make figures, make test: each makes the environment it needs. VENV=… uses another one.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
VENV ?= .venv
PYTHON ?= python3
# recipes read these two from the environment, so that a path may hold spaces
override VENV := $(if $(filter /% ~%,$(firstword $(VENV))),$(VENV),$(CURDIR)/$(VENV))
export VENV PYTHON
export PATH := $(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: demo figures table1 table2 table-losses figure5 bench test quick types lab docs readme clean install

install:
	@.ci/install

# two threads on any machine, so that the digits are the same, and no spinning where they wait for one another: the two
# trainings share two cores; the messages are progress and errors of the notebook, without ipykernel's remark on sockets
DEMO = runs/demo
DEMO_LOSSES = ppce semeda
PAPERMILL = OMP_WAIT_POLICY=PASSIVE papermill --log-output --log-level WARNING --no-progress-bar
QUIET = 2>&1 | sed -u '/IPKernelApp/d'
# a report shows results without code, and without the cells that say how the notebook is used
REPORT = jupyter nbconvert --log-level WARN --to html --template classic --no-input --no-prompt \
  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags usage

demo: install
	@rm -rf $(DEMO)/scenes-*; mkdir -p $(DEMO)
	@echo "training with $(DEMO_LOSSES), at the same time"
	@$(MAKE) --no-print-directory -j2 $(DEMO_LOSSES:%=demo-%)
	@echo "comparing"
	@OMP_NUM_THREADS=2 $(PAPERMILL) nbs/compare.ipynb $(DEMO)/compare.ipynb \
	  -p run_folders "$(CURDIR)/$(DEMO)/scenes-ppce-s0,$(CURDIR)/$(DEMO)/scenes-semeda-s0" $(QUIET)
	@cp $(DEMO)/compare.ipynb "$(DEMO)/PPCE and SEMEDA on scenes.ipynb" # the name is the report's title
	@$(REPORT) --output report "$(DEMO)/PPCE and SEMEDA on scenes.ipynb"
	@echo; cat $(DEMO)/comparison.md; echo; echo "report: $(CURDIR)/$(DEMO)/report.html"

demo-%:
	@OMP_NUM_THREADS=2 $(PAPERMILL) nbs/train.ipynb $(DEMO)/train-$*.ipynb -p loss $* -p runs "$(CURDIR)/$(DEMO)" $(QUIET) \
	  | sed -u 's/^./$*: &/'

# the paper's figures from the runs of make demo, each in a process of its own, with one thread
figures: install
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
table1 table2 figure5: install
	python -m snakemake $@ --configfile semeda/study/studies/$(STUDY).yaml --cores $(JOBS) $(SNAKEMAKE_ARGS)

# which loss for my boundaries: the runs that have no result yet, then the page
# make table-losses LOSSES=losses_short SEMEDA_DATA=folder JOBS=2
LOSSES = losses
table-losses: install
ifdef SEMEDA_DATA
	-python -m semeda.study run $(LOSSES) --parallel $(JOBS)
else
	@echo "SEMEDA_DATA is not set: the page is made from results/ alone"
endif
	python -m semeda.study table table_losses $(QUIET)

# every benchmark on the CPU, about 40 minutes; others by hand: python -m benchmarks loss step --device cuda
bench: install
	python -m benchmarks $(BENCH_ARGS)

# three processes on two cores, since some tests wait for others; the type checker runs beside them
test: install
	ruff check
	python -m mypy & types=$$!; \
	OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder || failed=$$?; \
	wait $$types; exit $$failed
	OMP_NUM_THREADS=1 nbdev-test nbs --file-re '^[0-9]' --n-workers 2

# the tests of what differs from the last commit, and as many of the fast ones as fit into a minute on 2 cores
quick: install
	ruff check
	OMP_NUM_THREADS=1 python -m tests.quick $(QUICK_ARGS)

types: install
	python -m mypy

# opens a copy of the notebooks, so that running them changes no file of the project; NOTEBOOKS=nbs opens the files
# themselves; LAB_ARGS='--no-browser --port 9000' goes to JupyterLab
NOTEBOOKS = runs/lab
lab: install
	@mkdir -p runs/lab; cp -Rn nbs/. runs/lab/ || true
	@echo "runs/lab keeps your changes; after an update, move it away to get the new notebooks"
	jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) $(NOTEBOOKS)/playground.ipynb

docs: install
	@command -v quarto >/dev/null || { \
	  echo "docs need Quarto, which is not on the PATH: see https://quarto.org/docs/get-started/ for your system," \
	    "then run 'make docs' again" >&2; exit 1; }
	nbdev-docs

# README.md is the index notebook as Markdown
readme: install
	python -m tests.readme

clean:
	rm -rf runs _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .mypy_cache
