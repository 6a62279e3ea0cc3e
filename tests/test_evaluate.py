import csv
import json
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semeda.data import scenes
from semeda.edges import InputError
from semeda.evaluate import FILES, Source, chosen_images, compare_evaluations, count, evaluate_folders, evaluate_run, load_counts, main, read_class_names, read_palette
from semeda.metrics import scores_of
from semeda.trainer import train as train_run
from tests.conftest import ROOT, real_data, run, snapshot
from tests.test_notebooks import papermill
from tests.test_trainer import SMALL

# Two images of 3 classes that fit on a page; v is void, and so may a prediction be there
LABELS = dict(first="""
000111
000111
000111
0vv111""", second="""
000000
000000
002200
002200""")
PREDICTIONS = dict(first="""
000011
020111
000111
0v1111""", second="""
000000
000000
002220
002000""")


def array(text, void=255):
    return np.array([[void if c == "v" else int(c) for c in row] for row in text.split()], np.uint8)


def write(folder, masks, mode="L", void=255, size=None):
    "Masks as another program might write them"
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        image = Image.fromarray(array(mask, void) if isinstance(mask, str) else mask)
        if mode == "P":
            image = image.convert("L")
            image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    return write(tmp_path / "pred", PREDICTIONS), write(tmp_path / "label", LABELS)


def rows_of(out):
    with open(out / "images.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("modes", ["LL", "PP", "LP"])
@pytest.mark.parametrize("void", [255, 7])
def test_equals_values_by_hand(tmp_path, modes, void):
    pred = write(tmp_path / "pred", PREDICTIONS, modes[0], void)
    label = write(tmp_path / "label", LABELS, modes[1], void)
    assert Image.open(pred / "first.png").mode == modes[0]
    out = tmp_path / "out"
    returned = evaluate_folders(pred, label, 3, out, ignore_index=void, class_names="a,b,c", max_width=2, progress=None)
    metrics = json.loads((out / "metrics.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES) and returned["miou"] == metrics["miou"]
    # first: one 1 is taken for 0, one 0 for 2; second: one 2 for 0 and one 0 for 2; 22 + 24 pixels are labelled
    assert metrics["confusion"] == [[28, 0, 2], [1, 11, 0], [1, 0, 3]]
    assert metrics["iou"] == pytest.approx(dict(a=28 / 32, b=11 / 12, c=3 / 6))
    assert metrics["miou"] == pytest.approx((28 / 32 + 11 / 12 + 1 / 2) / 3)
    rows = rows_of(out)
    assert [r["name"] for r in rows] == ["first", "second"]
    assert float(rows[0]["miou"]) == pytest.approx((9 / 11 + 11 / 12 + 0) / 3) # class c is predicted
    assert float(rows[1]["miou"]) == pytest.approx((19 / 21 + 3 / 5) / 2) # class b is absent here
    # edges of the first: 3 pixels of class 0 left of the boundary, 4 of class 1 right of it, one of them wrong
    assert float(rows[0]["boundary_miou_width_1"]) == pytest.approx((3 / 4 + 3 / 4) / 2)
    # edges of the second: the 4 pixels of class 2 and the 8 around them; both wrong pixels are among them
    assert float(rows[1]["boundary_miou_width_1"]) == pytest.approx((7 / 9 + 3 / 5) / 2)
    assert "boundary_miou_width_5" not in rows[0]
    # the 2 in the first is a fragment of c too many and makes a hole in a
    assert [(r["excess_holes"], r["excess_fragments"]) for r in rows] == [("1", "1"), ("0", "0")]
    assert metrics["structure"]["excess_holes"] == .5 and metrics["structure"]["excess_fragments_per_class"]["c"] == .5
    assert metrics["absent_classes"] == [] and metrics["images"] == 2 and metrics["widths"] == [1, 2]
    assert metrics["versions"]["torch"] == torch.__version__.split("+")[0] and metrics["config"]["ignore_index"] == void
    low, high = metrics["miou_interval"]
    assert low <= metrics["miou"] <= high and len(metrics["boundary_miou_interval"]) == 2


def test_void_may_be_read_as_a_label(folders, tmp_path):
    scores = [evaluate_folders(*folders, 3, tmp_path / f"out-{void}", void=void, max_width=3, progress=None) for void in ("ignore", "label")]
    assert scores[0]["miou"] == scores[1]["miou"] and scores[0]["boundary_miou"] != scores[1]["boundary_miou"]
    assert scores[0]["boundary_iou"] != scores[1]["boundary_iou"]


def test_report_tells_classes_absence_and_images(folders, tmp_path):
    (tmp_path / "colours.txt").write_text("10 20 30\n40,50,60\n70 80 90\n200 100 0\n\n")
    (tmp_path / "names.txt").write_text("road\nbus stop\ncar\ntram\n")
    metrics = evaluate_folders(*folders, 4, tmp_path / "out", class_names=tmp_path / "names.txt", palette=tmp_path / "colours.txt", progress=None)
    assert metrics["absent_classes"] == ["tram"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Absent, and left out of the mean: tram." in report and "| tram     |  absent |" in report
    assert "#0a141e" in report and f"{100 * metrics['miou']:.1f}" in report and "bus stop" in report
    assert "best: second, mIoU 75.2%" in report and "worst: first, mIoU 57.8%" in report
    picture = np.array(Image.open(tmp_path / "out" / "pictures" / "worst.png"))
    assert tuple(picture[5, 5]) == (10, 20, 30) and tuple(picture[5, 300]) == (40, 50, 60)
    for target in ("pictures/best.png", "pictures/worst.png"):
        assert f"]({target})" in report and (tmp_path / "out" / target).is_file()


def test_chosen_images():
    rows = [dict(miou=v) for v in (.5, float("nan"), .9, .1, .7)]
    assert chosen_images(rows) == dict(best=2, median=0, worst=3)
    assert chosen_images(rows[:1]) == dict(best=0) and chosen_images(rows[1:2]) == {}


def test_images_without_any_label(tmp_path):
    empty = dict(only=np.full((6, 6), 255, np.uint8))
    metrics = evaluate_folders(write(tmp_path / "pred", empty), write(tmp_path / "label", empty), 2, tmp_path / "out", progress=None)
    assert np.isnan(metrics["miou"]) and metrics["absent_classes"] == ["class 0", "class 1"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["miou"] is None and rows_of(tmp_path / "out")[0]["miou"] == ""


def test_counts_are_kept_and_compared(folders, tmp_path):
    pred, label = folders
    same = evaluate_folders(pred, label, 3, tmp_path / "a", max_width=6, progress=None)
    perfect = evaluate_folders(label, label, 3, tmp_path / "b", max_width=6, progress=None)
    counts, about = load_counts(tmp_path / "a")
    assert counts.shape == (2, 7, 3, 3) and counts.dtype == torch.int32 and about["names"] == ["first", "second"]
    assert scores_of(counts.sum(0))["boundary"].tolist() == pytest.approx(same["boundary_miou"], nan_ok=True)
    difference = compare_evaluations(tmp_path / "a", tmp_path / "b")
    assert difference["miou"][0].item() == pytest.approx(perfect["miou"] - same["miou"]) and difference["miou"][1] > 0
    assert all((v[0].nan_to_num() == 0).all() for v in compare_evaluations(tmp_path / "a", tmp_path / "a", resamples=20).values())
    evaluate_folders(label, label, 3, tmp_path / "narrow", max_width=2, progress=None)
    with pytest.raises(InputError, match="have max_width 6 and 2; expected the same"):
        compare_evaluations(tmp_path / "a", tmp_path / "narrow")
    evaluate_folders(pred, pred, 3, tmp_path / "other", max_width=6, progress=None)
    with pytest.raises(InputError, match="differ in their labels; expected the same"):
        compare_evaluations(tmp_path / "a", tmp_path / "other")
    with pytest.raises(InputError, match="has no counts.safetensors; expected a folder that semeda-evaluate wrote"):
        compare_evaluations(tmp_path / "a", tmp_path)
    (tmp_path / "other" / "counts.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError, match="counts.safetensors cannot be read"):
        load_counts(tmp_path / "other")


def test_one_image_is_in_memory_at_a_time():
    seen, most = [], []

    def read(i):
        masks = torch.full((8, 8), i % 2, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
        seen.extend(weakref.ref(m) for m in masks)
        most.append(sum(r() is not None for r in seen))
        return masks

    found, counts, rows = count(Source([str(i) for i in range(20)], read, ["a", "b"], [(0, 0, 0)] * 2, dict(max_width=2, void="ignore")), None)
    assert max(most) <= 4 and len(counts) == len(rows) == 20 and found["trimap"].counts.sum() == 20 * 64


def test_order_on_disk_and_names_do_not_matter(folders, tmp_path):
    pred, label = folders
    renamed = {name: tmp_path / f"{name}2" for name in ("pred", "label")}
    for name, source in (("pred", pred), ("label", label)):
        renamed[name].mkdir()
        for old, new in (("first", "z"), ("second", "a")):
            os.link(source / f"{old}.png", renamed[name] / f"{new}.png")
    one = evaluate_folders(pred, label, 3, tmp_path / "one", progress=None)
    two = evaluate_folders(renamed["pred"], renamed["label"], 3, tmp_path / "two", progress=None)
    assert one["confusion"] == two["confusion"] and one["boundary_miou"] == pytest.approx(two["boundary_miou"], nan_ok=True)
    assert one["structure"] == two["structure"] and rows_of(tmp_path / "two")[0]["name"] == "a"


# Bad input

def rgb(folder, name="first"):
    Image.new("RGB", (6, 4)).save(folder / f"{name}.png")


def put(folder, name, mask):
    Image.fromarray(mask).save(folder / f"{name}.png")


def many(folder):
    for i in range(7):
        put(folder, f"extra{i}", np.zeros((4, 6), np.uint8))


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


BAD = dict(
    sizes=(lambda p, l: put(p, "first", np.zeros((5, 7), np.uint8)), "pred/first.png is 7x5 but its label is 6x4; expected the same size"),
    names=(lambda p, l: (many(p), (p / "second.png").unlink()), "predictions without a label: extra0, extra1, extra2, extra3, extra4 and 2 more; labels without a prediction: second; expected the same names"),
    lonely=(lambda p, l: many(l), "predictions without a label: none; labels without a prediction: extra0, extra1, extra2, extra3, extra4 and 2 more;"),
    colour_label=(lambda p, l: rgb(l), "label/first.png is a RGB image; expected one channel of class numbers, mode L or P"),
    colour_prediction=(lambda p, l: rgb(p), "pred/first.png is a RGB image; expected one channel of class numbers, mode L or P"),
    range=(lambda p, l: put(p, "first", np.arange(24, dtype=np.uint8).reshape(4, 6)), "pred/first.png contains 3, 4, 5, 6, 7 and 16 more; expected 0..2 or 255 (void)"),
    label_range=(lambda p, l: put(l, "second", np.full((4, 6), 9, np.uint8)), "label/second.png contains 9; expected 0..2 or 255 (void)"),
    void=(lambda p, l: put(p, "first", np.full((4, 6), 255, np.uint8)), "pred/first.png contains 255 on 22 pixels whose label is a class; expected 0..2 there"),
    empty=(lambda p, l: [f.unlink() for f in p.iterdir()], "pred has no PNG files; expected one for each image"),
    missing=(lambda p, l: l.rename(l.with_name("elsewhere")), "label is not there; expected a folder of PNG files"),
    text=(lambda p, l: (l / "first.png").write_text("hello"), "label/first.png cannot be decoded"),
    truncated=(lambda p, l: cut(l / "second.png"), "label/second.png cannot be decoded"),
)


@pytest.mark.parametrize("case", BAD)
def test_spoilt_folders_are_one_line_and_leave_no_trace(folders, tmp_path, monkeypatch, capsys, case):
    spoil, words = BAD[case]
    spoil(*folders)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert main(["--pred", "pred", "--label", "label", "--classes", "3", "--out", "deep/out"]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "evaluate:" not in line.replace("semeda-evaluate:", "")]
    assert [words in line for line in lines if line] == [True] and captured.out == ""
    assert snapshot(tmp_path) == before


ARGS = dict(pred="pred", label="label", classes="3", out="out")
OPTIONS = [
    (dict(classes=None), "--classes not given; expected --pred, --label and --classes, or --run, and --out"),
    (dict(pred=None, label=None), "--pred, --label not given"),
    (dict(out=None), "--out not given"),
    (dict(run="runs/x"), "--pred, --label, --classes given together with --run; a run has its own"),
    (dict(pred=None, label=None, classes=None, run="runs/x"), "run folder runs/x has no metrics.json; expected a finished run"),
    (dict(classes="three"), "argument --classes: invalid int value: 'three'"),
    (dict(classes="0"), "num_classes is 0; expected 1..255"),
    (dict(classes="256"), "num_classes is 256; expected 1..255"),
    (dict(ignore_index="1"), "ignore_index is 1; expected none of the classes 0..2"),
    (dict(max_width="0"), "max_width is 0; expected 1..254"),
    (dict(void="skip"), "argument --void: invalid choice: 'skip'"),
    (dict(wide="3"), "unrecognized arguments: --wide=3"),
    (dict(class_names="a,b"), "class_names a,b has 2 names; expected 3"),
    (dict(class_names="a,b,b"), "class_names a,b,b has 'b' twice; expected 3 different names"),
    (dict(class_names="names.txt"), "class_names names.txt cannot be read"),
    (dict(palette="short.txt"), "palette short.txt has 2 colours; expected 3, one a line"),
    (dict(palette="wrong.txt"), "palette wrong.txt has the line '1 2 256'; expected red, green and blue, 0..255"),
    (dict(palette="pred"), "palette pred cannot be read"),
    (dict(out="mine"), "mine holds other files: notes.txt; expected an empty folder or nothing"),
    (dict(out="short.txt"), "short.txt is a file; expected a folder or nothing"),
    (dict(out="short.txt/out"), "cannot be made in"),
]


@pytest.mark.parametrize("changes, words", OPTIONS, ids=[" ".join(f"{k}={v}" for k, v in c.items()) for c, _ in OPTIONS])
def test_bad_options_are_one_line_and_leave_no_trace(folders, tmp_path, monkeypatch, capsys, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "short.txt").write_text("1 2 3\n4 5 6\n")
    (tmp_path / "wrong.txt").write_text("1 2 3\n4 5 6\n1 2 256\n")
    before = snapshot(tmp_path)
    assert main([f"--{k.replace('_', '-')}={v}" for k, v in (ARGS | changes).items() if v is not None]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("semeda-evaluate: ") and words in lines[0]
    assert snapshot(tmp_path) == before


def test_an_evaluation_is_replaced_by_the_same_only(folders, tmp_path):
    pred, label = folders
    out = tmp_path / "out"
    out.mkdir() # empty is fine
    evaluate_folders(pred, label, 3, out, progress=None)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds another evaluation; expected an empty folder or nothing"):
        evaluate_folders(pred, label, 3, out, void="label", progress=None)
    assert snapshot(tmp_path) == before
    put(pred, "first", array(LABELS["first"]))
    evaluate_folders(pred, label, 3, out, progress=None)
    assert rows_of(out)[0]["miou"] == "1.0"
    assert {p.name for p in tmp_path.iterdir()} == {"pred", "label", "out"}


def test_a_failure_while_writing_leaves_the_old_evaluation(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluate_folders(*folders, 3, out, progress=None)
    before = snapshot(tmp_path)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("semeda.evaluate._report", full)
    with pytest.raises(OSError):
        evaluate_folders(*folders, 3, out, progress=None)
    assert snapshot(tmp_path) == before


def test_a_failure_to_take_the_name_leaves_the_old_evaluation(folders, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    evaluate_folders(*folders, 3, out, progress=None)
    before = snapshot(tmp_path)

    def fails_once(self, target):
        if ".part-" in self.name:
            raise OSError("device lost")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(OSError, match="device lost"):
        evaluate_folders(*folders, 3, out, progress=None)
    assert snapshot(tmp_path) == before


def test_names_and_palette():
    assert read_class_names(None, 2) == ["class 0", "class 1"] and read_class_names(["x", "y"], 2) == ["x", "y"]
    assert read_palette(None, 2) == [(0, 0, 0), (128, 0, 0)]


# The command, the notebook, a run, real labels

def test_command(folders, tmp_path):
    done = run(sys.executable, "-m", "semeda.evaluate", "--pred", folders[0], "--label", folders[1], "--classes", "3", "--out", tmp_path / "out", "--max-width", "3", "--void", "label")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["config"]["void"] == "label" and len(metrics["boundary_miou"]) == 3
    assert f"2 images, mIoU {100 * metrics['miou']:.2f}" in done.stdout and "2/2" in done.stderr
    failed = run(sys.executable, "-m", "semeda.evaluate", "--pred", "nowhere", "--label", folders[1], "--classes", "3", "--out", tmp_path / "no")
    assert failed.returncode == 2 and failed.stderr == "semeda-evaluate: prediction folder nowhere is not there; expected a folder of PNG files\n"


def test_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("semeda.run_setup.load_data", lambda dataset, split, *_: scenes(split, dict(train=12, val=4)[split]))
    finished = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    assert main(["--run", str(finished.folder), "--out", str(tmp_path / "out"), "--max-width", "5"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    mine = json.loads((finished.folder / "metrics.json").read_text())
    for key in ("miou", "iou", "boundary_miou", "non_boundary_miou", "absent_classes", "widths"):
        assert metrics[key] == mine[key], key
    assert metrics["config"]["void"] == "label" and metrics["config"]["final_weights"] == mine["final_weights"]
    other = evaluate_run(finished.folder, tmp_path / "other", 5, "ignore", None)
    assert other["miou"] == mine["miou"] and other["boundary_miou"] != mine["boundary_miou"]


def test_notebook_on_folders(folders, tmp_path):
    evaluate_folders(folders[1], folders[1], 3, tmp_path / "perfect", max_width=4, progress=None)
    args = [x for k, v in dict(pred=folders[0], label=folders[1], num_classes=3, out=tmp_path / "out", class_names="a,b,c", max_width=4).items() for x in ("-p", k, v)]
    refused = papermill(ROOT / "nbs" / "evaluate.ipynb", tmp_path / "no.ipynb", *args, "-p", "against", tmp_path / "perfect", cwd=tmp_path)
    assert "differ in their class names" in refused.stderr.strip().splitlines()[-1]
    evaluate_folders(folders[1], folders[1], 3, tmp_path / "named", class_names="a,b,c", max_width=4, progress=None)
    done = papermill(ROOT / "nbs" / "evaluate.ipynb", tmp_path / "done.ipynb", *args, "-p", "against", tmp_path / "named", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    printed = (tmp_path / "done.ipynb").read_text()
    assert f"{100 * metrics['miou']:.1f}" in printed and f"{100 * (metrics['miou'] - 1):+.1f}" in printed
    assert (tmp_path / "out" / "pictures" / "trimap.png").stat().st_size > 5000


def test_notebook_ends_with_the_line(tmp_path):
    before = snapshot(tmp_path)
    for args, words in ((["-p", "pred", "nowhere", "-p", "label", "x", "-p", "num_classes", "3"], "InputError: prediction folder nowhere is not there"), (["-p", "width", "3"], "InputError: unknown parameter 'width'; choose from pred")):
        done = papermill(ROOT / "nbs" / "evaluate.ipynb", *args, cwd=tmp_path, pipe=True)
        assert done.returncode != 0 and words in done.stderr.strip().splitlines()[-1]
    assert snapshot(tmp_path) == before


def test_real_labels_of_camvid(tmp_path):
    labels = real_data("camvid", "valannot")
    for name in sorted(labels.iterdir())[:6]:
        mask = np.array(Image.open(name))
        for folder, picture in (("label", mask), ("pred", np.where(np.roll(mask, 1, 1) == 11, 0, np.roll(mask, 1, 1)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / folder / Path(name).name)
    metrics = evaluate_folders(tmp_path / "pred", tmp_path / "label", 11, tmp_path / "out", ignore_index=11, progress=None)
    assert metrics["boundary_miou"][0] < metrics["miou"] < 1 and len(rows_of(tmp_path / "out")) == 6
