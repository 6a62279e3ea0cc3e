# The tables and figures as sweeps.
#
#   snakemake table1 --configfile benchmarks/studies/smoke.yaml --cores 2
#   snakemake table1 --configfile benchmarks/studies/camvid.yaml --cores 2 --dry-run
#   snakemake table1 --configfile benchmarks/studies/cityscapes.yaml --profile profiles/slurm
#
# A run is finished when its metrics.json is there; finished runs are never run again, interrupted
# ones go on from their checkpoint, and one that fails does not stop the others. One that diverges fails
# once; started again, the sweep notes that in the results and goes on to the table (to try it once more,
# delete its folder). A run whose result is in the folder of results is not run for a table: the project's
# own results/ make the tables at once, --config results=runs/results makes everything anew. Settings of a study:
# study, dataset, data_root, init_weights ({seed} in it stands for the seed), seeds, rows, variants,
# budget (parameters of nbs/train.ipynb);
# of the sweep: runs, results (folders), threads (of a run), gpu_percent (of a GPU that a run takes),
# partial (tables of the runs that are finished), studies (several at once, each with its own settings).
import json, os, shlex, sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
from benchmarks import sweep

SETTINGS = sweep.SWEEP | {k: v for k, v in config.items() if k in sweep.SWEEP}
RUNS, RESULTS = SETTINGS["runs"], SETTINGS["results"]
PYTHON = shlex.quote(sys.executable)

def refuse(error):
    print(f"snakemake: {error}", file=sys.stderr)
    sys.exit(2)

try: STUDIES = {target: sweep.studies(config, target) for target in sweep.TARGETS}
except ValueError as error: refuse(error)
BY_NAME = {study["study"]: study for studies in STUDIES.values() for study in studies}

def wanted(target):
    runs = sweep.runs(STUDIES[target])
    return [r for r in runs if sweep.outcome(sweep.run_folder(*r, RUNS)).is_file()] if SETTINGS["partial"] else runs

def figured():
    folders = [sweep.run_folder(*r, RUNS) for r in sweep.runs(STUDIES["figure5"])]
    usable = [f for f in folders if not sweep.has_diverged(f) and (sweep.is_finished(f) or not SETTINGS["partial"])]
    if folders[0] not in usable: refuse(f"figure5 compares with {folders[0]}, which {'has diverged' if sweep.has_diverged(folders[0]) else 'is not finished'}; expected it finished")
    return usable

def results(target): return [f"{RESULTS}/{study['study']}/{row}-s{seed}.json" for study, row, seed in wanted(target)]

def given(wildcards): return shlex.quote(json.dumps(sweep.parameters(BY_NAME[wildcards.study], wildcards.row, int(wildcards.seed))))

def names(target): return ",".join(dict.fromkeys(study["study"] for study in STUDIES[target]))

TARGET = next((a for a in sys.argv[1:] if a in sweep.TARGETS), None) # None in a job's own process
if TARGET:
    at_once = workflow.resource_settings.nodes or (workflow.resource_settings.cores or 1) // SETTINGS["threads"] # nodes: jobs on a cluster
    try: print(*sweep.plan(STUDIES[TARGET], RUNS, max(1, at_once), RESULTS if TARGET != "figure5" else None), sep="\n", file=sys.stderr)
    except ValueError as error: refuse(error)

wildcard_constraints:
    study=r"[\w.+-]+",
    row=r"[\w.+-]+",
    seed=r"\d+",

localrules: table1, table2, figure5

rule table1:
    input: f"{RUNS}/table1-{config.get('study') or names('table1')}.html"

rule table2:
    input: f"{RUNS}/table2-{config.get('study') or names('table2')}.html"

rule figure5:
    input: f"{RUNS}/figure5-{config.get('study') or names('figure5')}.html"

rule run:
    output: f"{RUNS}/{{study}}/{{row}}-s{{seed}}/metrics.json"
    params: folder=subpath(output[0], parent=True), given=given
    log: f"{RUNS}/{{study}}/{{row}}-s{{seed}}.log"
    threads: SETTINGS["threads"]
    resources: gpu_percent=SETTINGS["gpu_percent"]
    shell: PYTHON + " -m benchmarks.sweep {params.folder:q} {params.given} > {log:q} 2>&1"

rule collect:
    input: lambda w: str(sweep.outcome(Path(RUNS)/w.study/f"{w.row}-s{w.seed}"))
    output: f"{RESULTS}/{{study}}/{{row}}-s{{seed}}.json"
    params: folder=subpath(input[0], parent=True), given=given
    log: f"{RUNS}/{{study}}/{{row}}-s{{seed}}.collect.log"
    threads: SETTINGS["threads"]
    resources: gpu_percent=SETTINGS["gpu_percent"]
    shell: PYTHON + " -m benchmarks.collect {params.folder:q} {output:q} --given {params.given} > {log:q} 2>&1"

rule table:
    input: results=lambda w: results(w.target), notebook=ancient(ROOT/"nbs"/"paper"/"{target}.ipynb")
    output: f"{RUNS}/{{target}}-{{name}}.html"
    wildcard_constraints: target="table1|table2"
    params: studies=lambda w: names(w.target), notebook=f"{RUNS}/{{target}}-{{name}}.ipynb", folder=os.path.abspath(RESULTS)
    log: f"{RUNS}/{{target}}-{{name}}.log"
    shell:
        "({PYTHON} -m papermill --log-level WARNING --no-progress-bar {input.notebook:q} {params.notebook:q} -p studies {params.studies:q} -p results {params.folder:q}"
        " && {PYTHON} -m nbconvert --log-level WARN --to html --template classic --no-input {params.notebook:q}) > {log:q} 2>&1"

rule figure:
    input: runs=lambda w: [f"{folder}/metrics.json" for folder in figured()], notebook=ancient(ROOT/"nbs"/"paper"/"figure5.ipynb")
    output: f"{RUNS}/figure5-{{name}}.html"
    params:
        folders=lambda w: ",".join(map(os.path.abspath, figured())),
        notebook=f"{RUNS}/figure5-{{name}}.ipynb", folder=os.path.abspath(f"{RUNS}/figures")
    log: f"{RUNS}/figure5-{{name}}.log"
    shell:
        "({PYTHON} -m papermill --log-level WARNING --no-progress-bar {input.notebook:q} {params.notebook:q} -p run_folders {params.folders:q} -p out {params.folder:q}"
        " && {PYTHON} -m nbconvert --log-level WARN --to html --template classic --no-input {params.notebook:q}) > {log:q} 2>&1"

onerror:
    lines = sweep.failures(STUDIES[TARGET], TARGET, SETTINGS) if TARGET else []
    if lines: print(f"{len(lines)} failed; the same command goes on from here, and --config partial=true makes the table of what is there:", *lines, sep="\n  ", file=sys.stderr)
