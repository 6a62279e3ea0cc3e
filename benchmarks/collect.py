"""One finished run to one small JSON file, from which the tables and figures are made.

    python -m benchmarks.collect runs/STUDY/ROW-sSEED results/STUDY/ROW-sSEED.json

The file holds configuration, versions, commit, data fingerprint, hardware, seconds a step and all
metrics, with the class counts of each validation image in compact form. The run is evaluated for
that in runs/STUDY/ROW-sSEED.evaluation/, unless it was. Of a run that diverged the file holds the
step and the error instead. Nothing in the file names a place on this machine.
"""
import argparse
import base64
import csv
import json
import os
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.sweep import ROOT, has_diverged
from semeda.edges import InputError
from semeda.evaluate import evaluate_run, load_counts
from semeda.loss_registry import TABLE1
from semeda.trainer import Config, resolve, write_json

MACHINE = ("runs", "name", "resume", "workers", "data_root", "init_weights", "download") # parameters that say where and not what


def pack(counts):
    "int32 counts as text: their bytes sorted by significance, since most high ones are 0, then zlib and base64"
    values = counts.numpy().astype("<i4")
    planes = np.ascontiguousarray(values.reshape(-1, 1).view(np.uint8).T)
    return dict(shape=list(values.shape), encoding="base64 of zlib of the four byte planes of little-endian int32", data=base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode())


def unpack(packed):
    "Counts, int32, from `pack`"
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8).reshape(4, -1)
    return torch.from_numpy(np.ascontiguousarray(planes.T).view("<i4").astype(np.int32).reshape(packed["shape"]))


def check_result(record, study, name, given=None):
    "Raise InputError unless a result belongs to its study, its file name and what the study gives the run"
    here, (row, _, seed) = f"result {study}/{name}.json", name.rpartition("-s")
    if (record.get("study"), record.get("name")) != (study, name): raise InputError(f"{here} is {record.get('study')}/{record.get('name')}; expected {study}/{name}")
    if not seed.isdecimal() or (given is None and row not in TABLE1): raise InputError(f"{here} is no ROW-sSEED.json; expected a row of Table 1 or a variant of benchmarks/studies/{study}.yaml, and a seed")
    expected = asdict(resolve(**{**(given or dict(row=row)), "seed": int(seed)})[0])
    # without what the study gives the rest can be anything
    keys = {k for k in expected if k not in MACHINE} | {"init_weights"} if given else {"row", "seed", "loss", "lambdas"} | ({"relu"} if TABLE1[row]["relu"] else set())
    found = asdict(Config()) | record["config"] # an older version had fewer parameters
    for key in sorted(keys, key=lambda key: (key != "row", key)):
        value = os.path.basename(expected[key]) if key in ("edge_net", "init_weights") else expected[key]
        if found[key] != value: raise InputError(f"{here} has {key} {found[key]}; expected {value}, as its name says")
    if "diverged" in record: return
    images = record["counts"]["shape"][0]
    if images != record["val_images"]: raise InputError(f"{here} has counts of {images} images; expected {record['val_images']}")


def collect(folder, out, given=None):
    "Write the result of a run that has finished or diverged"
    folder, out = Path(folder), Path(out)
    if has_diverged(folder): return _write(out, _about(folder, out) | dict(diverged=json.loads((folder / "diverged.json").read_text())), given)
    if not (folder / "metrics.json").is_file(): raise InputError(f"run folder {folder} has no metrics.json; expected a finished run")
    metrics = json.loads((folder / "metrics.json").read_text())
    evaluation = folder.with_name(f"{folder.name}.evaluation")
    if not _is_of(evaluation, metrics):
        changes = {k: given[k] for k in ("data_root", "init_weights") if given and given.get(k)}
        evaluate_run(folder, evaluation, json.loads((folder / "config.json").read_text())["config"]["max_width"], **changes)
    measured, (counts, about) = json.loads((evaluation / "metrics.json").read_text()), load_counts(evaluation)
    if abs(measured["miou"] - metrics["miou"]) > .005: raise InputError(f"{folder} evaluates to mIoU {measured['miou']:.4f} but its metrics.json has {metrics['miou']:.4f}; expected the same")
    with open(evaluation / "images.csv", newline="", encoding="utf-8") as file: rows = list(csv.DictReader(file))
    with open(folder / "history.csv", newline="") as file: validated = [{k: float(r[k]) for k in ("step", "val_miou", "val_boundary_miou")} for r in csv.DictReader(file) if r["val_miou"]]
    record = _about(folder, out)
    record |= dict(labels=about["labels"], val_images=len(counts), class_names=about["class_names"],
                   metrics={k: v for k, v in metrics.items() if k != "cost"}, cost=metrics["cost"], validated=validated,
                   evaluation={k: measured[k] for k in ("boundary_iou", "boundary_iou_per_class", "structure", "git_commit")},
                   images={k: [int(r[k]) for r in rows] for k in ("excess_holes", "excess_fragments")}, counts=pack(counts))
    return _write(out, record, given)


def _about(folder, out):
    "What a run was, without places on this machine"
    run = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in run["config"].items() if k not in MACHINE} | {k: os.path.basename(run["config"][k]) for k in ("init_weights", "edge_net")}
    about = {k: run.get(k) for k in ("versions", "git_commit", "platform", "cpu_threads", "device", "initial_weights", "edge_net")}
    return dict(study=out.parent.name, name=out.stem, config=config, data=run["data"], **about)


def _write(out, record, given):
    check_result(record, out.parent.name, out.stem, given)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    return record


def _is_of(evaluation, metrics):
    "Whether an evaluation is that of these final weights"
    try: return json.loads((evaluation / "metrics.json").read_text())["config"]["final_weights"] == metrics["final_weights"]
    except (OSError, ValueError, KeyError): return False


def committed(root=ROOT / "results"):
    "The result files of all studies that benchmarks/studies/ defines, each with what its study gives the run"
    import yaml

    from benchmarks.sweep import studies
    for path in sorted((ROOT / "benchmarks" / "studies").glob("*.yaml")):
        config = yaml.safe_load(path.read_text().replace("${SEMEDA_DATA}", "data"))
        for study in studies(config, "table1"):
            for file in sorted((Path(root) / study["study"]).glob("*.json")): yield file, study


def main():
    parser = argparse.ArgumentParser("benchmarks.collect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that has finished or diverged")
    parser.add_argument("out", type=Path, help="file to write, STUDY/ROW-sSEED.json")
    parser.add_argument("--given", type=json.loads, help="what the study gives the run, as JSON")
    args = parser.parse_args()
    try: collect(args.run, args.out, args.given)
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
