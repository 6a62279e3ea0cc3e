"""The runs of a study: what they are, how far they got, how long the rest takes, and one of them.

    python -m benchmarks.sweep FOLDER PARAMETERS    one run; PARAMETERS is JSON

The Snakefile builds its jobs from here. A study is a dictionary, from benchmarks/studies/NAME.yaml
or the command line; a run of it is a row of Table 1, or a variant that the study defines, with a
seed: runs/STUDY/ROW-sSEED. A run is finished when its metrics.json is there, which the trainer
writes last and in one step; one whose loss was not finite any more has a diverged.json instead.
"""
import csv
import fcntl
import json
import os
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PPCE, UBERNET, SEMEDA = "table1_01", "table1_02", "table1_11"
TARGETS = dict(table1=[f"table1_{i:02}" for i in range(1, 15)], table2=[PPCE, UBERNET, SEMEDA], figure5=[PPCE, UBERNET, SEMEDA]) # rows where the study names none
STUDY = dict(study="", dataset="scenes", data_root="", init_weights="", seeds=[0], rows=None, variants={}, budget={})
SWEEP = dict(runs="runs", results="results", threads=1, gpu_percent=0, partial=False, studies=[{}])
# seconds a step, crop and batch on one core with the CPU preset's network: results/softening/training_*_s0.json
SECONDS = dict(scenes=(.5, 96, 8), camvid=(.53, 96, 6))
START = 30 # seconds of a run beside its steps, on one core


def studies(config, target):
    "The studies of a target, complete; raises ValueError"
    for key in config:
        if key not in STUDY | SWEEP: raise ValueError(f"unknown setting {key!r}; choose from {', '.join(STUDY | SWEEP)}")
    found = []
    for more in config.get("studies") or [{}]:
        study = STUDY | {k: v for k, v in config.items() if k in STUDY} | more
        if set(study) != set(STUDY): raise ValueError(f"unknown setting {min(set(study) - set(STUDY))!r} of a study; choose from {', '.join(STUDY)}")
        if not re.fullmatch(r"[\w.+-]+", str(study["study"])): raise ValueError(f"study is {study['study']!r}; expected a name, as in --configfile benchmarks/studies/NAME.yaml or --config study=NAME")
        for key in ("data_root", "init_weights"): study[key] = expanded(key, study[key])
        for key, kind in dict(budget=dict, variants=dict, seeds=list, rows=(list, type(None))).items():
            if not isinstance(study[key], kind): raise ValueError(f"{key} is {study[key]!r}; expected {'names with values' if kind is dict else 'a list'}")
        study["rows"] = study["rows"] or TARGETS[target]
        for row in study["rows"]:
            if row not in TARGETS["table1"] and row not in study["variants"]: raise ValueError(f"row is {row!r}; choose from {', '.join([*TARGETS['table1'], *study['variants']])}")
        for seed in study["seeds"]:
            if not isinstance(seed, int) or seed < 0: raise ValueError(f"seeds contain {seed!r}; expected integers from 0")
        found.append(study)
    return found


def expanded(key, path):
    "A path with its environment variables and ~, absolute"
    full = os.path.expanduser(os.path.expandvars(str(path or "")))
    if "$" in full: raise ValueError(f"{key} is {path!r}; expected that environment variable to be set")
    return os.path.abspath(full) if full else ""


def parameters(study, row, seed):
    "What the trainer is given, by name"
    where = {k: study[k].replace("{seed}", str(seed)) for k in ("dataset", "data_root", "init_weights") if study[k]}
    return where | study["budget"] | study["variants"].get(row, dict(row=row)) | dict(seed=seed)


def runs(studies):
    "Study, row and seed of each run; all rows of a seed before the next seed"
    return [(study, row, seed) for study in studies for seed in study["seeds"] for row in study["rows"]]


def run_folder(study, row, seed, where="runs"):
    return Path(where) / study["study"] / f"{row}-s{seed}"


def result_file(study, row, seed, where="results"):
    return Path(where) / study["study"] / f"{row}-s{seed}.json"


def is_finished(folder):
    return (folder / "metrics.json").is_file()


def has_diverged(folder):
    return (folder / "diverged.json").is_file() and not is_finished(folder)


def outcome(folder):
    "The file that tells how a run has ended, or will"
    return folder / ("diverged.json" if has_diverged(folder) else "metrics.json")


def steps_done(folder):
    "Of an interrupted run: the step of its checkpoint, at most"
    if not (folder / "checkpoint.pt").is_file() or not (folder / "history.csv").is_file(): return 0
    with open(folder / "history.csv", newline="") as file:
        return max((int(row["step"]) for row in csv.DictReader(file)), default=0)


def log_file(folder):
    return folder.with_name(folder.name + ".log")


def last_line(path):
    "The last line of a log that names an error, else what it ends with"
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
    errors = [line for line in lines if re.search(r"\b\w*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["no error line; was it killed?"])[-1]


def failures(studies, target, settings):
    "What was started and has not brought its file, each with the last error line of its log"
    jobs = []
    for run in runs(studies):
        folder = run_folder(*run, settings["runs"])
        result = result_file(*run, settings["results"])
        jobs += [(result if has_diverged(folder) else folder / "metrics.json", log_file(folder)), (result, folder.with_name(folder.name + ".collect.log"))]
    jobs += [(log.with_suffix(".html"), log) for log in sorted(Path(settings["runs"]).glob(f"{target}-*.log"))]
    return [f"{log}: {last_line(log)}" for file, log in jobs if log.is_file() and not file.is_file()]


def check(study, row, seed, where):
    "The run's configuration, after comparing it with what its folder holds; raises ValueError"
    from dataclasses import asdict

    from semeda.trainer import MAY_DIFFER, Config, resolve
    config = resolve(**parameters(study, row, seed))[0]
    path = run_folder(study, row, seed, where) / "config.json"
    if path.is_file():
        old, new = asdict(Config()) | json.loads(path.read_text())["config"], json.loads(json.dumps(asdict(config)))
        differ = [f"{k} {old[k]} instead of {v}" for k, v in new.items() if k not in MAY_DIFFER and old[k] != v]
        if differ: raise ValueError(f"run folder {path.parent} holds another run: {'; '.join(differ)}; expected the same, or another name of the study")
    return config


def seconds_per_step(study, row, seed, config, where):
    "From finished runs of this row, else of this study, else from the table; None where nothing is known"
    measured = {}
    for other in runs([study]):
        if is_finished(folder := run_folder(*other, where)):
            seconds = json.loads((folder / "metrics.json").read_text())["cost"]["seconds_per_step"]
            if seconds: measured.setdefault(other[1], []).append(seconds)
    if measured: return statistics.median(measured.get(row) or [s for seconds in measured.values() for s in seconds])
    if config.dataset not in SECONDS or config.backbone != "resnet18": return None
    seconds, crop, batch = SECONDS[config.dataset]
    return seconds * config.crop**2 * config.batch_size / (crop**2 * batch)


def duration(seconds):
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def plan(studies, where="runs", jobs=1, results=None):
    """The runs, their state and the time that the rest takes, as lines; raises ValueError for a study that cannot be run

    Where a table is made from `results`, a run whose result is there need not be run."""
    lines, total, unknown, counts = [], 0., 0, {}
    width = max(len(str(run_folder(*run, where))) for run in runs(studies))
    for run in runs(studies):
        folder, config = run_folder(*run, where), check(*run, where)
        ended = "finished" if is_finished(folder) else "diverged" if has_diverged(folder) else "from its result" if results and result_file(*run, results).is_file() else "to go"
        counts[ended] = counts.get(ended, 0) + 1
        if ended != "to go":
            lines.append(f"{str(folder):{width}}  {ended}" + (f" at step {json.loads(outcome(folder).read_text())['step']}" if ended == "diverged" else ""))
            continue
        done, seconds = steps_done(folder), seconds_per_step(*run, config, where)
        state = f"from step {done} of {config.iterations}" if done else f"{config.iterations} steps"
        if seconds is None: unknown += 1
        else: total += (cost := START + seconds * (config.iterations - done))
        lines.append(f"{str(folder):{width}}  {state:22}  {'about ' + duration(cost) if seconds is not None else 'time unknown until a run has finished'}")
    several = f", {jobs} at a time" if jobs > 1 else ""
    left = counts.get("to go", 0)
    time = "" if not left else f": about {duration(total / jobs)}{several}" if not unknown else f": time of {unknown} unknown" + (f", the others about {duration(total / jobs)}{several}" if total else "")
    known = f"{counts.get('finished', 0)} finished" + "".join(f", {counts[k]} {k}" for k in ("diverged", "from its result") if k in counts)
    hint = [f"runs whose result is in {results} are not run; --config results=FOLDER, with another folder, runs them too"] if "from its result" in counts else []
    return [*lines, f"{len(lines)} runs, {known}, {left} to go{time}", *hint]


def command(folder, given):
    "papermill's command line for one run"
    text = lambda v: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v)
    given = given | dict(name=folder.name, runs=str(folder.parent.absolute()), resume=True)
    pairs = [part for name, value in given.items() for part in ("-p", name, text(value))]
    return [sys.executable, "-m", "papermill", "--log-output", "--log-level", "WARNING", "--no-progress-bar",
            str(ROOT / "nbs" / "train.ipynb"), str(folder.with_name(folder.name + ".ipynb")), *pairs]


def main():
    "Become the papermill process of one run, unless it is finished"
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    folder.parent.mkdir(parents=True, exist_ok=True)
    again = has_diverged(folder)
    # held by papermill until it ends: where a killed sweep left one behind, the next waits for it
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_CREAT | os.O_RDWR)
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not is_finished(folder) and (again or not has_diverged(folder)): # the one it waited for may have ended so
        line = command(folder, given)
        os.execv(line[0], line)


if __name__ == "__main__":
    main()
