"""What a sieve of the predicted masks costs and gains, for every finished run of a study.

    python -m benchmarks.sieve RUNS [--areas 0,10,20,40] [--out results/sieve] [--data-root FOLDER]

RUNS is a study's folder of runs, such as runs/losses_0006R0. Each run's network segments its validation images once;
its scores with pieces under each area given to their neighbours go to OUT/NAME.json, NAME being that of the folder.
What the file has already is left out. At area 0 the scores must be those that the run wrote itself.
"""
import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from semeda.core import InputError, command, provenance, read_json, write_json
from semeda.metrics import build_metrics, metric_entries
from semeda.sieve import sieve
from semeda.trainer import load_run

OUT = Path(__file__).resolve().parent.parent / "results" / "sieve"
WIDTHS = 2 # boundary mIoU at widths 1 and 2


def scores_of(metrics, class_names):
    "The scores that are kept, of one area"
    entries = metric_entries({name: metric.compute() for name, metric in metrics.items()}, class_names)
    pieces = {name: entries["structure"][name] for name in ("excess_holes", "excess_fragments")}
    return {name: entries[name] for name in ("miou", "boundary_miou", "boundary_iou")} | pieces


def sieved_scores(run, areas, progress=tqdm):
    "Scores of a run at each area"
    data = run.val_data
    settings = dict(num_classes=data.num_classes, max_width=WIDTHS, void=run.config.void)
    metrics = {area: build_metrics(**settings) for area in areas}
    for image, label in zip(progress(data.images), data.labels):
        prediction = run.predict(image).cpu()
        for area, by_name in metrics.items():
            shown = sieve(prediction, area)
            for metric in by_name.values():
                metric.update(shown, label)
    return {str(area): scores_of(by_name, data.class_names) for area, by_name in metrics.items()}


def areas_of(text):
    "Areas as they were typed, 0 first"
    try:
        areas = sorted({0, *map(int, text.split(","))})
    except ValueError:
        raise InputError(f"--areas is {text!r}; expected numbers of pixels with commas between") from None
    if areas[0] < 0:
        raise InputError(f"--areas is {text!r}; expected 0 or more")
    return areas


def measure(args):
    "Every finished run that the file lacks"
    folder, areas = Path(args.runs).expanduser(), areas_of(args.areas)
    with_scores = sorted(path.parent for path in folder.glob("*/metrics.json"))
    finished = [path for path in with_scores if (path / "checkpoint.pt").is_file()] # no folder of an evaluation
    if not finished:
        raise InputError(f"runs {folder} has no finished run; expected the folder of a study's runs")
    path = Path(args.out) / f"{folder.resolve().name}.json"
    found = read_json(path) if path.is_file() else dict(areas=areas, runs={})
    if found["areas"] != areas:
        raise InputError(f"{path} has areas {found['areas']}; expected {areas}, or another --out")
    changes = dict(data_root=args.data_root) if args.data_root else {}
    for run_folder in finished:
        if run_folder.name in found["runs"]:
            continue
        run = load_run(run_folder, **changes)
        scores = sieved_scores(run, areas)
        if abs(scores["0"]["miou"] - run.metrics["miou"]) > 1e-6:
            raise InputError(f"run {run_folder} has mIoU {run.metrics['miou']} and scores {scores['0']['miou']} here")
        about = dict(final_weights=run.metrics["final_weights"], data=run.val_data.fingerprint, **provenance())
        found["runs"][run_folder.name] = dict(loss=run.config.loss, images=len(run.val_data), **about, scores=scores)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    print(f"{path}: {len(found['runs'])} runs at {len(areas)} areas")


def main(argv=None):
    parser = argparse.ArgumentParser("benchmarks.sieve", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS")
    parser.add_argument("--areas", default="0,10,20,40", metavar="N,N", help="in pixels [0,10,20,40]")
    parser.add_argument("--out", default=OUT, help="folder of the result")
    parser.add_argument("--data-root", help="where the dataset is now")
    args = parser.parse_args(argv)
    return command("benchmarks.sieve", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
