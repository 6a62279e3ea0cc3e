import json

import numpy as np
import pytest
import torch
from PIL import Image

from semeda.counts import class_counts, classes_in_region, region_changes, trimap_counts
from semeda.evaluate import evaluate_folders
from semeda.report import chosen_images, difference_rows, region_note, report_text, score_rows, score_tables
from tests.test_evaluate import LABELS, PREDICTIONS, write


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    "An evaluation with names and colours of its own, one class of which is absent"
    root = tmp_path_factory.mktemp("evaluated")
    (root / "colours.txt").write_text("10 20 30\n40,50,60\n70 80 90\n200 100 0\n\n")
    (root / "names.txt").write_text("road\nbus stop\ncar\ntram\n")
    folders = write(root / "pred", PREDICTIONS), write(root / "label", LABELS)
    given = dict(class_names=root / "names.txt", palette=root / "colours.txt", progress=None)
    evaluate_folders(*folders, 4, root / "out", **given)
    return root / "out"


def test_report_tells_classes_absence_and_images(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert metrics["absent_classes"] == ["tram"]
    report = (evaluated / "report.md").read_text()
    assert "Absent, and left out of the mean: tram." in report and "| tram     |  absent |" in report
    assert "#0a141e" in report and f"{100 * metrics['miou']:.1f}" in report and "bus stop" in report
    assert "best: second, mIoU 75.2%" in report and "worst: first, mIoU 57.8%" in report
    picture = np.array(Image.open(evaluated / "pictures" / "worst.png"))
    assert tuple(picture[5, 5]) == (10, 20, 30) and tuple(picture[5, 300]) == (40, 50, 60)
    for target in ("pictures/best.png", "pictures/worst.png"):
        assert f"]({target})" in report and (evaluated / target).is_file()


def test_report_says_why_a_curve_jumps(evaluated):
    report = (evaluated / "report.md").read_text()
    assert "in the non-boundary region from 3 to 2 at width 2, from 2 to 0 at width 3." in report
    assert region_note(None) == region_note(dict(boundary=[3, 3], non_boundary=[2, 2])) == ""


def test_what_a_file_may_hold_is_escaped():
    names = ["<script>alert(1)</script>", '<img src=x onerror="alert(1)">|*']
    metrics = dict(miou=.5, iou=dict.fromkeys(names, .5), absent_classes=[names[1]], class_names=names,
                   config=dict(pred="<b>x</b>", label="l"))
    text = report_text(metrics, ["<i>a</i>.png"], [dict(miou=.5)], [(0, 0, 0)] * 2)
    assert not any(f"<{tag}" in text for tag in ("script", "img", "b>", "i>"))
    assert all("<" not in table for table in score_tables(metrics))


def test_chosen_images():
    rows = [dict(miou=v) for v in (.5, float("nan"), .9, .1, .7)]
    assert chosen_images(rows) == dict(best=2, median=0, worst=3)
    assert chosen_images(rows[:1]) == dict(best=0) and chosen_images(rows[1:2]) == {}


def test_rows_are_of_the_scores_that_are_there():
    assert score_rows(dict(miou=.5)) == [["mIoU (%)", "50.0", ""]]
    assert score_rows(dict(miou=float("nan")))[0][1] == "" and score_rows({}) == []
    rows = score_rows(dict(boundary_miou=[.1, .2, .3], boundary_miou_interval=[[0, .2]] * 3), widths=(2, 9))
    assert rows == [["boundary mIoU (%), width 2", "20.0", "0.0 to 20.0"]]
    drawn = dict(boundary=tuple(torch.tensor([v, v]) for v in (.01, -.01, .03)))
    assert difference_rows(drawn, {}, {}, (1, 9)) == [["boundary mIoU (%), width 1", "+1.0", "-1.0", "+3.0"]]
    assert difference_rows({}, dict(boundary_iou=None), dict(boundary_iou=.5)) == []


def test_classes_in_a_region_are_those_that_are_labelled_or_predicted_there():
    rng = np.random.default_rng(0)
    label, prediction = (torch.from_numpy(rng.integers(0, k, (2, 9, 9))) for k in (3, 4))
    counts = torch.stack([class_counts(trimap_counts(p, l, 5, 3)) for p, l in zip(prediction, label)])
    found = classes_in_region(counts.sum(0))
    for w in (1, 2, 3):
        within = trimap_counts(prediction, label, 5, 3)[:w].sum(0)
        without = trimap_counts(prediction, label, 5, 3)[w:].sum(0)
        for name, region in (("boundary", within), ("non_boundary", without)):
            assert found[name][w - 1] == ((region.sum(0) + region.sum(1)) > 0).sum()
    assert region_changes([]) == region_changes([3]) == [] and region_changes([3, 2, 2, 0]) == [(2, 3, 2), (4, 2, 0)]
