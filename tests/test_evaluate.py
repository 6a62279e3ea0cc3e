import csv
import dataclasses
import json
import os
import resource
import shutil
import struct
import sys
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semeda import evaluation
from semeda.core import InputError
from semeda.data import load_data, scenes
from semeda.evaluate import (
    FILES,
    Source,
    compare_evaluations,
    count,
    evaluate_folders,
    evaluate_run,
    load_counts,
    main,
    read_class_names,
    read_palette,
)
from semeda.masks import Reading, read_masks, read_pair
from semeda.metrics import METRICS, scores_of
from semeda.reading import files_by_name
from semeda.sieve import sieve
from semeda.trainer import train as train_run
from tests.conftest import ROOT, real_data, snapshot
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


def write(folder, masks, mode="L", void=255, suffix=""):
    "Masks as another program might write them"
    for name, mask in masks.items():
        image = Image.fromarray(array(mask, void) if isinstance(mask, str) else mask)
        if mode == "P":
            image = image.convert("L")
            image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}{suffix}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    return write(tmp_path / "pred", PREDICTIONS), write(tmp_path / "label", LABELS)


def rows_of(out):
    with open(out / "images.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_columns_of_images(folders, tmp_path):
    quiet(*folders, 3, tmp_path / "out")
    columns = ["name", "miou", "boundary_miou_width_1", "boundary_miou_width_5", "excess_holes", "excess_fragments"]
    assert list(rows_of(tmp_path / "out")[0]) == columns


def quiet(*args, **kwargs):
    return evaluate_folders(*args, progress=None, **kwargs)


@pytest.mark.parametrize("modes", ["LL", "PP", "LP"])
@pytest.mark.parametrize("void", [255, 7])
def test_equals_values_by_hand(tmp_path, modes, void):
    pred = write(tmp_path / "pred", PREDICTIONS, modes[0], void)
    label = write(tmp_path / "label", LABELS, modes[1], void)
    assert Image.open(pred / "first.png").mode == modes[0]
    out = tmp_path / "out"
    returned = quiet(pred, label, 3, out, ignore_index=void, class_names="a,b,c", max_width=2)
    metrics = json.loads((out / "metrics.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES) and returned["miou"] == metrics["miou"]
    # first: one 1 is taken for 0, one 0 for 2; second: one 2 for 0 and one 0 for 2; 22 + 24 pixels are labelled
    assert metrics["confusion"] == [[28, 0, 2], [1, 11, 0], [1, 0, 3]]
    assert metrics["iou"] == pytest.approx(dict(a=28 / 32, b=11 / 12, c=3 / 6))
    assert metrics["miou"] == pytest.approx((28 / 32 + 11 / 12 + 1 / 2) / 3)
    rows = rows_of(out)
    columns = ["name", "miou", "boundary_miou_width_1", "excess_holes", "excess_fragments"]
    assert list(rows[0]) == columns and [r["name"] for r in rows] == ["first", "second"]
    assert float(rows[0]["miou"]) == pytest.approx((9 / 11 + 11 / 12 + 0) / 3) # class c is predicted
    assert float(rows[1]["miou"]) == pytest.approx((19 / 21 + 3 / 5) / 2) # class b is absent here
    # edges of the first: 3 pixels of class 0 left of the boundary, 4 of class 1 right of it, one of them wrong
    assert float(rows[0]["boundary_miou_width_1"]) == pytest.approx((3 / 4 + 3 / 4) / 2)
    # edges of the second: the 4 pixels of class 2 and the 8 around them; both wrong pixels are among them
    assert float(rows[1]["boundary_miou_width_1"]) == pytest.approx((7 / 9 + 3 / 5) / 2)
    # the 2 in the first is a fragment of c too many and makes a hole in a
    assert [(r["excess_holes"], r["excess_fragments"]) for r in rows] == [("1", "1"), ("0", "0")]
    assert metrics["structure"]["excess_holes"] == .5
    assert metrics["structure"]["excess_fragments_per_class"]["c"] == .5
    assert metrics["absent_classes"] == [] and metrics["images"] == 2 and metrics["widths"] == [1, 2]
    # at width 2 all of c lies in the band
    assert metrics["classes_in_region"] == dict(boundary=[3, 3], non_boundary=[3, 2])
    assert metrics["versions"]["torch"] == torch.__version__.split("+")[0]
    assert metrics["config"]["ignore_index"] == void
    low, high = metrics["miou_interval"]
    assert low <= metrics["miou"] <= high and len(metrics["boundary_miou_interval"]) == 2


def test_keys_of_metrics_json_are_those_of_version_0_1(folders, tmp_path):
    metrics = quiet(*folders, 3, tmp_path / "out", max_width=2)
    old = """miou miou_interval iou absent_classes widths boundary_miou boundary_miou_interval non_boundary_miou
    non_boundary_miou_interval boundary_iou boundary_iou_per_class structure confusion images class_names config
    fingerprint versions git_commit platform cpu_threads""".split()
    assert [key for key in metrics if key != "classes_in_region"] == old
    assert list(metrics["config"]) == "pred label num_classes ignore_index max_width void class_names".split()


def test_void_may_be_read_as_a_label(folders, tmp_path):
    scores = [quiet(*folders, 3, tmp_path / f"out-{void}", void=void, max_width=3) for void in ("ignore", "label")]
    assert scores[0]["miou"] == scores[1]["miou"] and scores[0]["boundary_miou"] != scores[1]["boundary_miou"]
    assert scores[0]["boundary_iou"] != scores[1]["boundary_iou"]


def test_images_without_any_label(tmp_path):
    empty = dict(only=np.full((6, 6), 255, np.uint8))
    metrics = quiet(write(tmp_path / "pred", empty), write(tmp_path / "label", empty), 2, tmp_path / "out")
    assert np.isnan(metrics["miou"]) and metrics["absent_classes"] == ["class 0", "class 1"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["miou"] is None
    assert rows_of(tmp_path / "out")[0]["miou"] == ""


def test_counts_are_kept_and_compared(folders, tmp_path):
    pred, label = folders
    same = quiet(pred, label, 3, tmp_path / "a", max_width=6)
    perfect = quiet(label, label, 3, tmp_path / "b", max_width=6)
    counts, about = load_counts(tmp_path / "a")
    assert counts.shape == (2, 7, 3, 3) and counts.dtype == torch.int32 and about["names"] == ["first", "second"]
    assert scores_of(counts.sum(0))["boundary"].tolist() == pytest.approx(same["boundary_miou"], nan_ok=True)
    difference = compare_evaluations(tmp_path / "a", tmp_path / "b")
    assert difference["miou"][0].item() == pytest.approx(perfect["miou"] - same["miou"]) and difference["miou"][1] > 0
    assert difference["excess_holes"][0] == difference["excess_fragments"][0] == -.5
    unchanged = compare_evaluations(tmp_path / "a", tmp_path / "a", resamples=20)
    assert all((v[0].nan_to_num() == 0).all() for v in unchanged.values())
    quiet(label, label, 3, tmp_path / "narrow", max_width=2)
    with pytest.raises(InputError, match="have max_width 6 and 2; expected the same"):
        compare_evaluations(tmp_path / "a", tmp_path / "narrow")
    quiet(pred, pred, 3, tmp_path / "other", max_width=6)
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

    source = Source([str(i) for i in range(20)], read, ["a", "b"], [(0, 0, 0)] * 2, dict(max_width=2, void="ignore"))
    found, counts, rows = count(source, None)
    assert max(most) <= 4 and len(counts) == len(rows) == 20 and found["trimap"].counts.sum() == 20 * 64


def test_order_on_disk_and_names_do_not_matter(folders, tmp_path):
    pred, label = folders
    renamed = {name: tmp_path / f"{name}2" for name in ("pred", "label")}
    for name, source in (("pred", pred), ("label", label)):
        renamed[name].mkdir()
        for old, new in (("first", "z"), ("second", "a")):
            os.link(source / f"{old}.png", renamed[name] / f"{new}.png")
    one = quiet(pred, label, 3, tmp_path / "one")
    two = quiet(renamed["pred"], renamed["label"], 3, tmp_path / "two")
    assert one["confusion"] == two["confusion"]
    assert one["boundary_miou"] == pytest.approx(two["boundary_miou"], nan_ok=True)
    assert one["structure"] == two["structure"] and rows_of(tmp_path / "two")[0]["name"] == "a"


# Masks as other programs store them

def same_scores(metrics, folders, tmp_path):
    reference = quiet(*folders, 3, tmp_path / "reference")
    assert [metrics[k] for k in ("miou", "iou", "structure")] == [reference[k] for k in ("miou", "iou", "structure")]


def test_npy_tif_and_grey_rgb(folders, tmp_path):
    pred = tmp_path / "other"
    pred.mkdir()
    np.save(pred / "first.npy", array(PREDICTIONS["first"]).astype(np.int64))
    Image.fromarray(array(PREDICTIONS["second"])).save(pred / "second.tif")
    label = write(tmp_path / "rgb", {name: np.stack([array(mask)] * 3, axis=-1) for name, mask in LABELS.items()})
    same_scores(quiet(pred, label, 3, tmp_path / "out"), folders, tmp_path)


def test_colours_of_the_palette(folders, tmp_path):
    palette = np.array([[128, 64, 128], [244, 35, 232], [70, 70, 70], [0, 0, 0]], np.uint8)
    (tmp_path / "colours.txt").write_text("".join(f"{r} {g} {b}\n" for r, g, b in palette))
    for folder, masks in (("p", PREDICTIONS), ("l", LABELS)):
        write(tmp_path / folder, {name: palette[np.minimum(array(mask), 3)] for name, mask in masks.items()})
    asked = dict(palette=tmp_path / "colours.txt")
    same_scores(quiet(tmp_path / "p", tmp_path / "l", 3, tmp_path / "out", **asked), folders, tmp_path)
    write(tmp_path / "p", dict(first=np.full((4, 6, 3), 9, np.uint8)))
    with pytest.raises(InputError, match="p/first.png has the colours 9 9 9; expected those of the palette"):
        quiet(tmp_path / "p", tmp_path / "l", 3, tmp_path / "no", **asked)


def test_layout_of_cityscapes(tmp_path):
    ids = {"ulm/ulm_1": np.array([[7, 7, 8], [7, 26, 0]], np.uint8), "jena/j_1": np.array([[11, 33, 8]] * 2, np.uint8)}
    train = {"ulm/ulm_1": np.array([[0, 0, 1], [0, 13, 255]], np.uint8)}
    train["jena/j_1"] = np.array([[2, 18, 1]] * 2, np.uint8)
    gt = write(tmp_path / "gtFine" / "val", ids, suffix="_gtFine_labelIds")
    write(gt, train, suffix="_gtFine_labelTrainIds")
    write(gt, {name: np.stack([mask] * 3, axis=-1) for name, mask in ids.items()}, suffix="_gtFine_color")
    wrong = {"ulm/ulm_1": np.array([[0, 0, 1], [0, 0, 7]], np.uint8), "jena/j_1": train["jena/j_1"]}
    pred = write(tmp_path / "pred", wrong, suffix="_leftImg8bit")
    by_file = {Path(name).name: mask for name, mask in wrong.items()}
    flat = write(tmp_path / "one_folder", by_file, suffix="_leftImg8bit")
    asked = ["--classes=19", f"--label={gt}", "--pred-suffix=_leftImg8bit", "--max-width=2"]
    ways = dict(train=["--label-suffix=_gtFine_labelTrainIds", f"--pred={pred}"],
                ids=["--label-suffix=_gtFine_labelIds", "--label-map=cityscapes", f"--pred={pred}"],
                flat=["--label-suffix=_gtFine_labelIds", "--label-map=cityscapes", f"--pred={flat}"])
    for name, way in ways.items():
        assert main([*asked, *way, f"--out={tmp_path / name}"]) == 0
    found = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ways}
    assert found["ids"]["confusion"] == found["train"]["confusion"] == found["flat"]["confusion"]
    assert found["train"]["iou"]["class 13"] == 0 and found["train"]["iou"]["class 18"] == 1
    assert [row["name"] for row in rows_of(tmp_path / "ids")] == ["jena/j_1", "ulm/ulm_1"]
    assert found["ids"]["config"]["label_map"] == "cityscapes"


def test_map_file_and_both_sides(folders, tmp_path):
    (tmp_path / "map.txt").write_text("10 0\n20: 1 # road\n30, 2\n0 void\n")
    table = np.zeros(256, np.uint8)
    table[:3] = 10, 20, 30
    pred = write(tmp_path / "p", {name: table[array(mask)] for name, mask in PREDICTIONS.items()})
    asked = dict(pred_map=tmp_path / "map.txt")
    same_scores(quiet(pred, folders[1], 3, tmp_path / "out", **asked), folders, tmp_path)
    write(pred, dict(first=np.full((4, 6), 10, np.uint8) + (array(LABELS["first"]) == 1)))
    with pytest.raises(InputError, match="prediction .*first.png contains 11; expected the numbers of the label map"):
        quiet(pred, folders[1], 3, tmp_path / "no", **asked)


def test_predictions_of_another_size(folders, tmp_path):
    large = {name: np.kron(array(mask), np.ones((2, 2), np.uint8)) for name, mask in PREDICTIONS.items()}
    pred = write(tmp_path / "large", large)
    with pytest.raises(InputError, match="first.png is 12x8 but its label is 6x4; expected the same size"):
        quiet(pred, folders[1], 3, tmp_path / "no")
    same_scores(quiet(pred, folders[1], 3, tmp_path / "out", resize="nearest"), folders, tmp_path)


def test_one_image_gives_no_interval(tmp_path):
    pred, label = (write(tmp_path / k, dict(first=m["first"])) for k, m in dict(p=PREDICTIONS, l=LABELS).items())
    metrics = quiet(pred, label, 3, tmp_path / "out", max_width=2)
    assert not [key for key in metrics if "interval" in key]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| to |" not in " ".join(report.split()) and "interval |" not in report
    assert "One image gives no interval." in report


# Bad input

def rgb(folder, name="first"):
    Image.new("RGB", (6, 4), (1, 2, 3)).save(folder / f"{name}.png")


def put(folder, name, mask, ending="png"):
    Image.fromarray(mask).save(folder / f"{name}.{ending}")


def many(folder):
    for i in range(7):
        put(folder, f"extra{i}", np.zeros((4, 6), np.uint8))


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def bomb(folder):
    "A PNG whose header promises 40000 x 40000 pixels"
    header = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    data = (folder / "first.png").read_bytes()
    (folder / "first.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def two_frames(folder):
    (folder / "second.png").unlink()
    page = Image.new("L", (6, 4))
    page.save(folder / "second.tif", save_all=True, append_images=[page])


def objects(folder):
    (folder / "second.png").unlink()
    np.save(folder / "second.npy", np.array([{}], dtype=object), allow_pickle=True)


def one_void(folder):
    mask = array(PREDICTIONS["first"])
    mask[0, 0] = 255
    put(folder, "first", mask)


BAD = dict(
    sizes=(lambda p, l: put(p, "first", np.zeros((5, 7), np.uint8)),
           "pred/first.png is 7x5 but its label is 6x4; expected the same size, or --resize nearest"),
    names=(lambda p, l: (many(p), (p / "second.png").unlink()),
           "predictions without a label: extra0, extra1, extra2, extra3, extra4 and 2 more; "
           "labels without a prediction: second; expected the same names"),
    lonely=(lambda p, l: many(l), "predictions without a label: none; labels without a prediction: extra0, extra1, "
            "extra2, extra3, extra4 and 2 more;"),
    colour_label=(lambda p, l: rgb(l), "label label/first.png is an RGB image with colours; expected three equal"),
    colour_prediction=(lambda p, l: rgb(p), "prediction pred/first.png is an RGB image with colours; expected three"),
    alpha=(lambda p, l: Image.new("RGBA", (6, 4)).save(p / "first.png"),
           "pred/first.png is a RGBA image; expected one channel of class numbers, mode L or P"),
    range=(lambda p, l: put(p, "first", np.arange(24, dtype=np.uint8).reshape(4, 6)),
           "pred/first.png contains 3, 4, 5, 6, 7 and 16 more; expected 0..2 or 255 (void)"),
    label_range=(lambda p, l: put(l, "second", np.full((4, 6), 9, np.uint8)),
                 "label/second.png contains 9; expected 0..2 or 255 (void)"),
    label_equal_to_c=(lambda p, l: put(l, "second", np.full((4, 6), 3, np.uint8)),
                      "label/second.png contains 3; expected 0..2 or 255 (void)"),
    wide_numbers=(lambda p, l: put(l, "second", np.full((4, 6), 280, np.uint16)),
                  "label/second.png contains 280; expected 0..2 or 255 (void)"),
    void=(lambda p, l: put(p, "first", np.full((4, 6), 255, np.uint8)),
          "pred/first.png contains 255 on 22 pixels whose label is a class; expected 0..2 there"),
    one_void_pixel=(lambda p, l: one_void(p),
                    "pred/first.png contains 255 on 1 pixel whose label is a class; expected 0..2 there"),
    empty=(lambda p, l: [f.unlink() for f in p.iterdir()], "pred has no PNG, TIFF or .npy files; expected one"),
    missing=(lambda p, l: l.rename(l.with_name("elsewhere")), "label is not there; expected a folder of masks"),
    text=(lambda p, l: (l / "first.png").write_text("hello"), "label/first.png cannot be decoded"),
    truncated=(lambda p, l: cut(l / "second.png"), "label/second.png cannot be decoded"),
    zero_bytes=(lambda p, l: (l / "second.png").write_bytes(b""), "label/second.png cannot be decoded"),
    name_of_two_lines=(lambda p, l: (p / "a\nb.png").write_bytes(b""),
                       r"predictions without a label: a\nb; labels without a prediction: none"),
    name_not_utf8=(lambda p, l: [put(f, "\udcff", np.zeros((4, 6), np.uint8)) for f in (p, l)],
                   r"image name '\udcff' is not UTF-8; expected names that are"),
    twice=(lambda p, l: put(p, "first", np.zeros((4, 6), np.uint8), "tif"),
           "pred has first.png and first.tif; expected one file of each name"),
    frames=(lambda p, l: two_frames(p), "prediction pred/second.tif has 2 frames; expected one"),
    bomb=(lambda p, l: bomb(p), "prediction pred/first.png cannot be decoded: Image size (1600000000 pixels) exceeds"),
    objects=(lambda p, l: objects(p), "prediction pred/second.npy cannot be decoded: Array can't be memory-mapped"),
)


def told(capsys):
    "The line on stderr, which is alone and on a line of its own"
    captured = capsys.readouterr()
    *bar, line = captured.err.splitlines()
    assert captured.out == "" and captured.err.endswith(f"{line}\n") and line.startswith("semeda-evaluate: "), captured
    assert all(part == "" or part.startswith("evaluate:") for part in bar), bar
    return line


@pytest.mark.parametrize("case", BAD)
def test_spoilt_folders_are_one_line_and_leave_no_trace(folders, tmp_path, monkeypatch, capsys, case):
    spoil, words = BAD[case]
    spoil(*folders)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert main(["--pred", "pred", "--label", "label", "--classes", "3", "--out", "deep/out"]) == 2
    assert words in told(capsys)
    assert snapshot(tmp_path) == before


ARGS = dict(pred="pred", label="label", classes="3", out="out")
RUN = dict(pred=None, label=None, classes=None, run="runs/x")
OPTIONS = [
    (dict(classes=None), "--classes not given; expected --pred, --label and --classes, or --run, and --out"),
    (dict(pred=None, label=None), "--pred, --label not given"),
    (dict(out=None), "--out not given"),
    (dict(run="runs/x"), "--pred, --label, --classes given together with --run; a run has its own"),
    (RUN | dict(ignore_index="0"), "--ignore-index given together with --run; a run has its own"),
    (RUN, "run folder runs/x has no metrics.json; expected a finished run"),
    (RUN | dict(run="."), "run folder . has no metrics.json; expected a finished run"),
    (dict(data_root="x", split="train"), "--data-root, --split given without --run; expected a run whose data it says"),
    (dict(classes="three"), "argument --classes: invalid int value: 'three'"),
    (dict(classes="0"), "num_classes is 0; expected 1..255"),
    (dict(classes="256"), "num_classes is 256; expected 1..255"),
    (dict(ignore_index="1"), "ignore_index is 1; expected none of the classes 0..2"),
    (dict(max_width="0"), "max_width is 0; expected 1..254"),
    (dict(max_width="3.7"), "argument --max-width: invalid int value: '3.7'"),
    (dict(void="skip"), "argument --void: invalid choice: 'skip'"),
    (dict(min_area="-1"), "min_area is -1; expected 0.."),
    (dict(min_area="1.5"), "argument --min-area: invalid int value: '1.5'"),
    (dict(resize="bicubic"), "argument --resize: invalid choice: 'bicubic'"),
    (dict(wide="3"), "unrecognized arguments: --wide=3"),
    (dict(class_names="a,b"), "class_names a,b has 2 names; expected 3"),
    (dict(class_names="a,b,b"), "class_names a,b,b has 'b' twice; expected 3 different names"),
    (dict(class_names="names.txt"), "class_names names.txt cannot be read"),
    (dict(class_names="n\0"), "cannot be read: embedded null byte"),
    (dict(palette="short.txt"), "palette short.txt has 2 colours; expected 3, one a line"),
    (dict(palette="wrong.txt"), "palette wrong.txt has the line '1 2 256'; expected red, green and blue, 0..255"),
    (dict(palette="pred"), "palette pred cannot be read"),
    (dict(pred_suffix="_x"), "prediction folder pred has no PNG, TIFF or .npy files ending in _x; expected one"),
    (dict(label_map="cityscapes"), "label map cityscapes has 19 classes; expected 3"),
    (dict(label_map="nowhere.txt"), "label map nowhere.txt cannot be read"),
    (dict(plugin="no_such_module"), "plugin 'no_such_module' cannot be imported: ModuleNotFoundError"),
    (dict(out="mine"), "mine holds other files: notes.txt; expected an empty folder or nothing"),
    (dict(out="short.txt"), "short.txt is a file; expected a folder or nothing"),
    (dict(out="short.txt/out"), "cannot be made in"),
    (dict(out="label/out"), "label/out lies among the masks of label; expected another folder"),
    (dict(out="pred/some/out"), "pred/some/out lies among the masks of pred; expected another folder"),
    (dict(out="/"), "out / holds other files"),
    (dict(out="n\0"), "cannot be written to: embedded null byte; expected a writable folder"),
    (dict(out="n" * 300), "cannot be written to: [Errno 36] File name too long"),
    (dict(pred="n" * 300), "File name too long"),
    (dict(pred="n\0"), "is not there; expected a folder of masks"),
]


@pytest.mark.parametrize("changes, words", OPTIONS, ids=lambda x: str(x)[:60])
def test_bad_options_are_one_line_and_leave_no_trace(folders, tmp_path, monkeypatch, capsys, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "short.txt").write_text("1 2 3\n4 5 6\n")
    (tmp_path / "wrong.txt").write_text("1 2 3\n4 5 6\n1 2 256\n")
    before = snapshot(tmp_path)
    assert main([f"--{k.replace('_', '-')}={v}" for k, v in (ARGS | changes).items() if v is not None]) == 2
    assert words in told(capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("changes, words", [
    (dict(max_width=3.7), "max_width is 3.7; expected a whole number 1..254"),
    (dict(max_width=float("nan")), "max_width is nan; expected a whole number 1..254"),
    (dict(num_classes="abc"), "num_classes is 'abc'; expected a whole number 1..255"),
    (dict(num_classes=None), "num_classes is None; expected a whole number 1..255"),
    (dict(ignore_index=1.5), "ignore_index is 1.5; expected a whole number"),
    (dict(void="x"), "void is 'x'; expected 'ignore' or 'label'"),
    (dict(resize="linear"), "resize is 'linear'; expected 'nearest' or nothing"),
])
def test_bad_arguments(folders, tmp_path, changes, words):
    before = snapshot(tmp_path)
    given = dict(pred=folders[0], label=folders[1], num_classes=3, out=tmp_path / "out") | changes
    with pytest.raises(InputError) as e:
        quiet(**given)
    assert words in str(e.value) and snapshot(tmp_path) == before


def test_an_evaluation_is_replaced_by_the_same_only(folders, tmp_path):
    pred, label = folders
    out = tmp_path / "out"
    out.mkdir() # empty is fine
    quiet(pred, label, 3, out)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds another evaluation; expected an empty folder or nothing"):
        quiet(pred, label, 3, out, void="label")
    assert snapshot(tmp_path) == before
    put(pred, "first", array(LABELS["first"]))
    quiet(pred, label, 3, out)
    assert rows_of(out)[0]["miou"] == "1.0"
    assert {p.name for p in tmp_path.iterdir()} == {"pred", "label", "out"}


# Faults: a failure in a write, a full disk, a kill

def test_a_failure_while_writing_leaves_the_old_evaluation(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    quiet(*folders, 3, out)
    before = snapshot(tmp_path)
    for place in ("write_json", "_write_rows", "_write_counts", "write_report"):
        with monkeypatch.context() as context:
            context.setattr(evaluation, place, lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
            with pytest.raises(OSError):
                quiet(*folders, 3, out)
        assert snapshot(tmp_path) == before


def test_a_failure_to_take_the_name_leaves_the_old_evaluation(folders, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    quiet(*folders, 3, out)
    before = snapshot(tmp_path)

    def fails_once(self, target):
        if ".part-" in self.name:
            raise OSError("device lost")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(OSError, match="device lost"):
        quiet(*folders, 3, out)
    assert snapshot(tmp_path) == before


def test_a_full_disk_is_one_line(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 5000): # not even the probe, and not all files
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            status = main([f"--{k}={v}" for k, v in ARGS.items()])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 2 and "File too large" in told(capsys)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("moment", ["while it writes", "between the names"])
def test_what_a_killed_process_left_is_put_right(folders, tmp_path, monkeypatch, moment):
    out = tmp_path / "out"
    quiet(*folders, 3, out)
    before = snapshot(out)
    if moment == "between the names":
        evaluation_of_the_killed = tmp_path / f".out.old-{evaluation.platform.node()}-99999999"
        out.rename(evaluation_of_the_killed)
    (tmp_path / f".out.part-{evaluation.platform.node()}-99999999").mkdir()
    evaluation._clear_leftovers(out)
    assert snapshot(out) == before and {p.name for p in tmp_path.iterdir()} == {"pred", "label", "out"}


def test_of_a_running_process_nothing_is_taken(tmp_path):
    for owner in (f"{evaluation.platform.node()}-{os.getpid()}", "another-machine-99999999"):
        part = tmp_path / f".out.part-{owner}"
        part.mkdir()
        evaluation._clear_leftovers(tmp_path / "out")
        assert part.is_dir()


def test_names_and_palette():
    assert read_class_names(None, 2) == ["class 0", "class 1"] and read_class_names(["x", "y"], 2) == ["x", "y"]
    assert read_palette(None, 2) == [(0, 0, 0), (128, 0, 0)]


@pytest.mark.parametrize("lines, twice", [
    (["0 0 0", "255 0 0", "255 0 0"], 1), (["0 0 0", "0 9 0", "0 0 9", "0 0 0"], 0),
    (["0 0 0", "0 9 0", "0 0 9", "1 1 1", "1 1 1"], None)])
def test_a_palette_with_a_colour_twice(tmp_path, lines, twice):
    path = tmp_path / "palette.txt"
    path.write_text("\n".join(lines))
    if twice is None: # two of void
        assert len(read_palette(path, 3, with_void=True)) == 5
    else:
        with pytest.raises(InputError, match=f"the colour .* of class {twice} again; expected a colour of its own"):
            read_palette(path, 3, with_void=True)


# A metric of one's own

PLUGIN = '''
import torch
from semeda.counts import CountMetric, confusion
from semeda.metrics import METRICS, MetricRecord

class Accuracy(CountMetric):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes, self.shapes = num_classes, dict(accuracy=(), recall=(num_classes,))
        self._add_counts("counts", num_classes, num_classes)
    def update(self, predictions, labels):
        self.counts += confusion(predictions, labels, self.num_classes)
    def compute(self):
        right = self.counts.diagonal().double()
        return dict(accuracy=right.sum() / self.counts.sum(), recall=right / self.counts.sum(dim=1))

METRICS.register("accuracy", MetricRecord("accuracy", Accuracy, "pixel accuracy"))
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_metrics"
    METRICS.pop("accuracy", None)
    sys.modules.pop("my_metrics", None)


def test_a_metric_of_ones_own_is_one_registration(folders, tmp_path, plugin, capsys):
    asked = [f"--pred={folders[0]}", f"--label={folders[1]}", "--classes=3", "--class-names=a,b,c", "--max-width=2"]
    assert main([*asked, f"--out={tmp_path / 'out'}", f"--plugin={plugin}"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(42 / 46)
    assert metrics["recall"] == pytest.approx(dict(a=28 / 30, b=11 / 12, c=3 / 4))
    assert [float(row["accuracy"]) for row in rows_of(tmp_path / "out")] == pytest.approx([20 / 22, 22 / 24])
    report = " ".join((tmp_path / "out" / "report.md").read_text().split())
    assert "| pixel accuracy (%) | 91.3 |" in report
    quiet(folders[1], folders[1], 3, tmp_path / "best", class_names="a,b,c", max_width=2)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "best")]) == 0
    assert "| pixel accuracy (%) | +8.7 |" in " ".join(capsys.readouterr().out.split())


# The command, the notebook, a run, real labels

def test_command(folders, tmp_path, capsys):
    asked = [f"--pred={folders[0]}", f"--label={folders[1]}", "--classes=3", "--max-width=3", "--void=label"]
    assert main([*asked, f"--out={tmp_path / 'out'}"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["config"]["void"] == "label" and len(metrics["boundary_miou"]) == 3
    assert f"2 images, mIoU {100 * metrics['miou']:.2f}" in captured.out and "2/2" in captured.err
    for word in ("--help", "--version"):
        assert main([word]) == 0 and "semeda-evaluate" in capsys.readouterr().out
    assert main(["--pred=nowhere", *asked[1:], f"--out={tmp_path / 'no'}"]) == 2
    line = "semeda-evaluate: prediction folder nowhere is not there; expected a folder of masks\n"
    assert capsys.readouterr().err == line


def test_predictions_without_small_pieces(folders, tmp_path):
    "are scored as masks that were sieved before"
    sieved = tmp_path / "sieved"
    sieved.mkdir()
    for path in sorted(folders[0].glob("*.png")):
        Image.fromarray(sieve(np.array(Image.open(path)), 2)).save(sieved / path.name)
    asked = [f"--label={folders[1]}", "--classes=3", "--max-width=3"]
    assert main([f"--pred={folders[0]}", *asked, "--min-area=2", f"--out={tmp_path / 'a'}"]) == 0
    assert main([f"--pred={sieved}", *asked, f"--out={tmp_path / 'b'}"]) == 0
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert a["config"].pop("min_area") == 2 and a["fingerprint"] == b["fingerprint"] and a["iou"] == b["iou"]
    plain = quiet(*folders, 3, tmp_path / "plain", max_width=3)
    assert plain["structure"]["excess_fragments"] > a["structure"]["excess_fragments"]
    assert "min_area" not in plain["config"]


def test_compare_command(folders, tmp_path, capsys):
    quiet(*folders, 3, tmp_path / "a", max_width=2)
    metrics = quiet(folders[1], folders[1], 3, tmp_path / "b", max_width=2)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--resamples=100"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "| | difference | low | high |" and lines[2].startswith("| mIoU (%) | +23.6 |")
    assert any(line.startswith("| excess holes an image | -0.50 |") for line in lines)
    assert any(line.startswith("| Boundary IoU (%), band of 2% of the diagonal | +") for line in lines)
    assert metrics["miou"] == 1
    for argv, words in (
        (["nowhere", "neither"], "nowhere and neither are not there; expected two folders that semeda-evaluate wrote"),
        ([str(tmp_path / "a"), str(tmp_path)], "has no counts.safetensors"),
        ([str(tmp_path / "a")], "the following arguments are required: B"),
        ([str(tmp_path / "a")] * 2 + ["--level=95"], "level is 95.0; expected a share between 0 and 1"),
        ([str(tmp_path / "a")] * 2 + ["--resamples=0"], "resamples is 0; expected 100..1000000"),
    ):
        assert main(["compare", *argv]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("semeda-evaluate") and words in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A run on a few scenes"
    with pytest.MonkeyPatch.context() as patch:
        few = dict(train=12, val=4)
        patch.setattr("semeda.run_setup.load_data", lambda dataset, split, *_, **__: scenes(split, few[split]))
        yield train_run(None, **SMALL, loss="ppce", runs=str(tmp_path_factory.mktemp("runs")))


def test_a_run(finished, tmp_path):
    assert main(["--run", str(finished.folder), "--out", str(tmp_path / "out"), "--max-width", "5"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    mine = json.loads((finished.folder / "metrics.json").read_text())
    for key in ("miou", "iou", "boundary_miou", "non_boundary_miou", "absent_classes", "widths"):
        assert metrics[key] == mine[key], key
    assert metrics["config"]["void"] == "label" and metrics["config"]["final_weights"] == mine["final_weights"]
    assert list(metrics["config"]) == "run final_weights dataset max_width void".split()
    other = evaluate_run(finished.folder, tmp_path / "other", 5, "ignore", None)
    assert other["miou"] == mine["miou"] and other["boundary_miou"] != mine["boundary_miou"]


def test_a_run_on_other_data(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("semeda.evaluate.load_data", lambda dataset, split, **_: scenes(split, 5) if dataset == "scenes"
                        else load_data(dataset, split, **_))
    asked = ["--run", str(finished.folder), "--max-width=3"]
    assert main([*asked, "--split=train", f"--out={tmp_path / 'train'}"]) == 0
    train = json.loads((tmp_path / "train" / "metrics.json").read_text())
    assert train["images"] == 5 and train["config"]["split"] == "train"
    data = scenes("val", 4)
    for kind, values in (("images", data.images), ("labels", data.labels)):
        for i, value in enumerate(values):
            folder = tmp_path / "mine" / "val" / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(value.permute(1, 2, 0).numpy() if value.dim() == 3 else value.numpy()).save(
                folder / f"{i}.png"
            )
    elsewhere = [*asked, "--dataset=folder", f"--data-root={tmp_path / 'mine'}"]
    assert main([*elsewhere, f"--out={tmp_path / 'mine' / 'out'}"]) == 0
    mine = json.loads((tmp_path / "mine" / "out" / "metrics.json").read_text())
    assert mine["miou"] == pytest.approx(finished.metrics["miou"], abs=1e-6) # the same four images
    assert mine["class_names"] == data.class_names and mine["config"]["dataset"] == "folder"
    capsys.readouterr()
    for argv, words in (
        ([*asked, "--dataset=nothing"], "nothing"),
        (
            [*asked, "--dataset=folder", "--data-root=/nowhere"],
            "data_root is '/nowhere'; expected the folder of the folder",
        ),
        ([*elsewhere, "--split=test"], "test"),
    ):
        assert main([*argv, f"--out={tmp_path / 'no'}"]) == 2
        assert words in told(capsys) and not (tmp_path / "no").exists()


@pytest.mark.parametrize("fault", ["missing", "zero bytes", "other weights"])
def test_a_run_without_its_own_checkpoint_is_refused(finished, tmp_path, capsys, fault):
    run = shutil.copytree(finished.folder, tmp_path / "run")
    checkpoint = run / "checkpoint.pt"
    if fault == "other weights":
        state = torch.load(checkpoint, weights_only=True)
        next(v for v in state["net"].values() if v.is_floating_point()).add_(1)
        torch.save(state, checkpoint)
    else:
        checkpoint.unlink()
    if fault == "zero bytes":
        checkpoint.touch()
    for further in ([], ["--split=train"]):
        assert main(["--run", str(run), f"--out={tmp_path / 'out'}", *further]) == 2
        assert "checkpoint" in told(capsys) and not (tmp_path / "out").exists()


def notebook_arguments(**parameters):
    return [x for k, v in parameters.items() for x in ("-p", k, v)]


def test_notebook_on_folders(tmp_path):
    names = '<img src=x onerror="alert(1)">,b|c,c'
    pred, label = (write(tmp_path / k, {"<script>": m["first"], "second": m["second"]})
                   for k, m in dict(p=PREDICTIONS, l=LABELS).items())
    quiet(label, label, 3, tmp_path / "named", class_names=names, max_width=4)
    args = notebook_arguments(pred=pred, label=label, num_classes=3, out=tmp_path / "out", class_names=names,
                              max_width=4, against=tmp_path / "named")
    done = papermill(ROOT / "nbs" / "evaluate.ipynb", tmp_path / "done.ipynb", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    outputs = [o for c in json.loads((tmp_path / "done.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
    shown = json.dumps([o.get("data", {}).get("text/markdown", "") for o in outputs])
    assert f"{100 * metrics['miou']:.1f}" in shown and f"{100 * (metrics['miou'] - 1):+.1f}" in shown
    for text in (shown, (tmp_path / "out" / "report.md").read_text()):
        assert "&lt;img src=x onerror" in text and "<img" not in text and "<script" not in text
    assert (tmp_path / "out" / "pictures" / "trimap.png").stat().st_size > 5000


def run_cells(tmp_path, monkeypatch, **parameters):
    "The notebook's cells in this process, with parameters as papermill injects them"
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "nbs" / "evaluate.ipynb").read_text())["cells"]
    first, *others = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    injected = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    namespace = dict(In=[first, injected])
    for source in (first, injected, *others):
        exec(source, namespace)


@pytest.mark.parametrize("parameters, words", [
    (dict(pred="x", label="y", num_classes="abc"), "num_classes is 'abc'; expected a whole number 1..255"),
    (dict(pred="x", label="y", num_classes=3, max_width=3.7), "max_width is 3.7; expected a whole number 1..254"),
    (dict(pred="nowhere", label="y", num_classes=3), "prediction folder nowhere is not there"),
    (dict(pred="x", run_folder="y"), "run_folder is 'y' and pred 'x'; expected one of them"),
    (dict(width=3), "unknown parameter 'width'; choose from pred"),
    (dict(run_folder="y", class_names="a,b"), "class_names is 'a,b'; expected it with pred and label, since a run"),
    (dict(run_folder="y", ignore_index=0), "ignore_index is 0; expected it with pred and label, since a run has"),
    (dict(num_classes=3), "num_classes is 3; expected it with pred and label"), # it showed the example of 7
    (dict(pred="x", label="y", num_classes=3, split="val"), "split is 'val'; expected it with run_folder"),
    (dict(data_root="x"), "data_root is 'x'; expected it with run_folder, since masks have none"),
])
def test_notebook_refuses_bad_parameters(tmp_path, monkeypatch, parameters, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as e:
        run_cells(tmp_path, monkeypatch, **parameters)
    assert words in str(e.value) and not list(tmp_path.iterdir())


def test_notebook_sieves_and_takes_other_data_of_a_run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("semeda.plots.show", lambda figure, path=None: None) # a cell has its caption, a kernel alone
    pred, label = (write(tmp_path / k, m) for k, m in dict(p=PREDICTIONS, l=LABELS).items())
    run_cells(tmp_path, monkeypatch, pred=str(pred), label=str(label), num_classes=3, out=str(tmp_path / "masks"),
              max_width=4, min_area=2)
    metrics = json.loads((tmp_path / "masks" / "metrics.json").read_text())
    plain = quiet(pred, label, 3, tmp_path / "plain", max_width=4)
    assert metrics["config"]["min_area"] == 2 and metrics["miou"] > plain["miou"]
    monkeypatch.setattr("semeda.evaluate.load_data", lambda dataset, split, **_: scenes(split, 3))
    folder = str(finished.folder)
    run_cells(tmp_path, monkeypatch, run_folder=folder, split="train", out=str(tmp_path / "run"), max_width=4)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["config"]["split"] == "train" and metrics["config"]["run"] == folder and metrics["images"] == 3


def test_real_labels_of_camvid(tmp_path):
    labels = real_data("camvid", "valannot")
    for name in sorted(labels.iterdir())[:6]:
        mask = np.array(Image.open(name))
        shifted = np.where(np.roll(mask, 1, 1) == 11, 0, np.roll(mask, 1, 1))
        for folder, picture in (("label", mask), ("pred", shifted)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / folder / Path(name).name)
    metrics = quiet(tmp_path / "pred", tmp_path / "label", 11, tmp_path / "out", ignore_index=11)
    assert metrics["boundary_miou"][0] < metrics["miou"] < 1 and len(rows_of(tmp_path / "out")) == 6


def test_masks_of_0_and_255_are_told(tmp_path, capsys):
    "255 is void, so that the object is not scored; a map makes a class of it"
    for kind in ("pred", "label"):
        (tmp_path / kind).mkdir()
        pixels = np.zeros((6, 8), np.uint8)
        pixels[2:, 3:] = 255
        Image.fromarray(pixels).save(tmp_path / kind / "a.png")
    (tmp_path / "map.txt").write_text("0 0\n255 1\n")
    given = [f"--pred={tmp_path / 'pred'}", f"--label={tmp_path / 'label'}", "--classes=2", "--max-width=2"]
    assert main([*given, f"--out={tmp_path / 'one'}"]) == 0
    told = capsys.readouterr()
    assert "hold no two classes" in told.err and "boundary mIoU at width 1 none" in told.out
    assert "Warning" not in told.err # in the words of the command
    with pytest.warns(UserWarning, match="hold no two classes"):
        quiet(tmp_path / "pred", tmp_path / "label", 2, tmp_path / "api", max_width=2)
    assert main([*given[:2], "--classes=1", "--max-width=2", f"--out={tmp_path / 'alone'}"]) == 0
    assert "hold no two classes" in capsys.readouterr().err # though it scores 100
    maps = [f"--{name}-map={tmp_path / 'map.txt'}" for name in ("label", "pred")]
    assert main([*given, *maps, f"--out={tmp_path / 'two'}"]) == 0
    told = capsys.readouterr()
    assert "hold no two classes" not in told.err and "mIoU 100.00" in told.out


def test_a_label_map_is_of_stored_numbers_whatever_their_colours(tmp_path):
    "With a palette, for the report's colours, the map was applied to the classes of the colours"
    (tmp_path / "map.txt").write_bytes(b"\xef\xbb\xbf7 0\r\n8 1\r\n0 void\r\n") # as Notepad writes it
    (tmp_path / "palette.txt").write_text("0 0 128\n128 0 0\n")
    for kind in ("pred", "label"):
        (tmp_path / kind).mkdir()
        mask = Image.fromarray(np.repeat(np.array([[7, 7, 8, 8]], np.uint8), 4, 0))
        mask.putpalette([0] * 21 + [128, 0, 0] + [0, 0, 128]) # 7 in the colour of class 1, 8 in that of class 0
        mask.save(tmp_path / kind / "a.png")
    maps = dict(pred_map=tmp_path / "map.txt", label_map=tmp_path / "map.txt", palette=tmp_path / "palette.txt")
    metrics = quiet(tmp_path / "pred", tmp_path / "label", 2, tmp_path / "out", max_width=2, class_names="a,b", **maps)
    assert metrics["confusion"] == [[8, 0], [0, 8]]
    Image.fromarray(np.full((4, 4, 3), (128, 0, 0), np.uint8)).save(tmp_path / "label" / "a.png")
    with pytest.raises(InputError, match="is an RGB image with colours; expected .* a palette and no label map"):
        quiet(tmp_path / "pred", tmp_path / "label", 2, tmp_path / "rgb", max_width=2, **maps)


def test_places_that_cannot_be_renamed_are_refused_before_anything_is_counted(tmp_path, monkeypatch):
    label = write(tmp_path / "l", LABELS)
    with pytest.raises(InputError, match="has a name that is too long; expected a folder in another one"):
        quiet(label, label, 3, tmp_path / ("x" * 250), max_width=4)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mounted")
    with pytest.raises(InputError, match="mounted is a mount point; expected a folder in another one"):
        quiet(label, label, 3, tmp_path / "mounted", max_width=4)
    quiet(label, label, 3, tmp_path / "mounted" / "within", max_width=4)


def test_an_evaluation_that_was_written_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    label, real = write(tmp_path / "l", LABELS), evaluation.summarise
    def meanwhile(*given):
        monkeypatch.setattr(evaluation, "summarise", real)
        quiet(label, label, 3, tmp_path / "out", max_width=3)
        return real(*given)
    monkeypatch.setattr(evaluation, "summarise", meanwhile)
    with pytest.raises(InputError, match="out holds another evaluation; expected an empty folder"):
        quiet(label, label, 3, tmp_path / "out", max_width=4)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["config"]["max_width"] == 3


def test_a_turned_prediction_is_not_stretched(tmp_path):
    pred, label = tmp_path / "pred.png", tmp_path / "label.png"
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(pred)
    Image.fromarray(np.zeros((8, 4), np.uint8)).save(label)
    reading = Reading(2)
    with pytest.raises(InputError, match="pred.png is 8x4 and its label 4x8; expected both turned alike"):
        read_masks(pred, label, reading, reading, resize=True)
    with pytest.raises(InputError, match="pred.png is 8x4 but its label is 4x8; expected the same size"):
        read_masks(pred, label, reading, reading)
    Image.fromarray(np.zeros((1, 4), np.uint8)).save(pred) # which would broadcast
    with pytest.raises(InputError, match="is 4x1 but its label is 4x8"):
        read_pair(pred, label, 2)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    "What lies in it was left out without a word"
    def closed(folder, onerror=None, followlinks=False): # root reads every folder
        onerror(PermissionError(13, "Permission denied", str(folder)))
    monkeypatch.setattr(os, "walk", closed)
    with pytest.raises(InputError, match="cannot be read: Permission denied; expected one that can"):
        files_by_name(tmp_path, recursive=True)


def test_classes_in_another_order_are_not_those_of_a_run(finished, tmp_path, monkeypatch):
    def turned(dataset, split, **settings):
        data = scenes(split, 4)
        return dataclasses.replace(data, class_names=data.class_names[::-1], palette=data.palette[::-1])
    monkeypatch.setattr("semeda.evaluate.load_data", turned)
    with pytest.raises(InputError, match="dataset scenes has '.*' as class 0; expected '.*', as the run has"):
        evaluate_run(finished.folder, tmp_path / "out", 5, split="val")
    assert not (tmp_path / "out").exists()


def test_changes_that_other_data_do_not_take(finished, tmp_path):
    with pytest.raises(InputError, match="data_rot is '/x' beside split or dataset; expected no change but data_root"):
        evaluate_run(finished.folder, tmp_path / "out", 5, split="val", data_rot="/x")


def test_a_run_is_compared_with_masks_of_another_framework(finished, tmp_path, capsys, monkeypatch):
    data = scenes("val", 4)
    files = [f"{i}.jpg" for i in range(4)]
    monkeypatch.setattr("semeda.evaluate.load_data", lambda *_, **__: dataclasses.replace(data, files=files))
    evaluate_run(finished.folder, tmp_path / "run", 5, split="val", void="ignore")
    for kind in ("pred", "label"):
        write(tmp_path / kind, {str(i): label.numpy() for i, label in enumerate(data.labels)})
        for path in (tmp_path / kind).glob("*.png"): # predictions are of classes alone
            mask = np.array(Image.open(path))
            Image.fromarray(np.where((mask == 255) & (kind == "pred"), 0, mask).astype(np.uint8)).save(path)
    evaluate_folders(tmp_path / "pred", tmp_path / "label", 7, tmp_path / "png", max_width=5,
                     class_names=data.class_names)
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "png")]) == 0
    assert "mIoU" in capsys.readouterr().out
    for wrong, words in ((["--resamples=1"], "resamples is 1; expected 100.."), ([f"--seed={10**20}"], "seed is")):
        assert main(["compare", str(tmp_path / "run"), str(tmp_path / "png"), *wrong]) == 2
        assert words in capsys.readouterr().err
