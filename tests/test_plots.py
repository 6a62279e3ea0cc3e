"""Pictures that say what the numbers say, and the notebooks that draw the paper's figures."""
import json
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semeda import plots
from semeda.core import InputError
from semeda.data import scenes
from semeda.edge_net import embeddings, exact_edge_net, one_hot
from semeda.edges import trimap
from semeda.metrics import confusion, mean_iou
from semeda.plots import (
    LINE_STYLES,
    MARKERS,
    RIGHT_COLOURS,
    RUN_COLOURS,
    TRIMAP_COLOURS,
    WRONG_COLOUR,
    choose_images,
    classes_that_leave,
    disagreement,
    errors,
    image_scores,
    overlay,
    plot_chosen,
    plot_embeddings,
    plot_trimap_curves,
    plot_trimap_differences,
    plot_trimaps,
    save_figure,
    signed_picture,
)
from semeda.trainer import train
from tests.conftest import ROOT, run

DATA = scenes("val", count=6, size=48)


def shifted(mask, pixels):
    return mask.masked_fill(mask == 255, 0).roll(pixels, dims=1)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def pictures(fig):
    return [np.asarray(image.get_array()) for ax in fig.axes for image in ax.images]


def test_overlay_blends_and_leaves_void_alone():
    image, label = DATA.images[1], torch.tensor([[0, 3]]).repeat(48, 24).to(torch.uint8)
    label[:, :5] = 255
    photo = image.permute(1, 2, 0).numpy()
    found = overlay(image, label, DATA.palette, .7)
    assert (found[:, :5] == photo[:, :5]).all()
    expected = .3 * photo[:, 5:] + .7 * np.array(DATA.palette)[label[:, 5:].long()]
    assert abs(found[:, 5:] - expected).max() <= 2
    assert (overlay(image, label, DATA.palette, 1.)[:, 5:] == np.array(DATA.palette)[label[:, 5:].long()]).all()


def test_maps_mark_exactly_the_wrong_and_the_differing_pixels():
    image, label = DATA.images[1], DATA.labels[1]
    a, b = shifted(label, 1), shifted(label, -2)
    known = label != 255
    red = (errors(image, label, a) == WRONG_COLOUR).all(axis=-1)
    assert (red == ((a != label) & known).numpy()).all()
    found = disagreement(image, label, a, b)
    first, second = ((found == colour).all(axis=-1) for colour in RIGHT_COLOURS[:2])
    assert (first == ((a == label) & (b != label) & known).numpy()).all() and first.any()
    assert (second == ((b == label) & (a != label) & known).numpy()).all() and second.any()


def test_trimap_pictures_have_the_regions_colours():
    fig = plot_trimaps(DATA, [1], widths=(1, 3), void="label")
    for picture, width in zip(pictures(fig)[2:], (1, 3)):
        regions = trimap(DATA.labels[1], width, void="label").numpy()
        for value, colour in ((1, TRIMAP_COLOURS[1]), (0, TRIMAP_COLOURS[0]), (255, (255, 255, 255))):
            assert ((picture == colour).all(axis=-1) == (regions == value)).all()
    words = [t.get_text() for t in fig.legends[0].get_texts()]
    assert {"trimap: boundary", "non-boundary", "void"} < set(words)


def test_embeddings_of_a_perfect_prediction_differ_nowhere():
    label, net = DATA.labels[1], exact_edge_net(7)
    clean = one_hot(label[None], 7)[0]
    moved = one_hot(shifted(label, 3)[None], 7)[0]
    perfect, other = (pictures(plot_embeddings(label, {"p": p}, net, DATA.palette)) for p in (clean, moved))
    n = len(perfect) // 3
    assert all((p == perfect[-1][0, 0]).all() for p in perfect[2 * n:])
    assert not (other[-1] == other[-1][0, 0]).all()
    psi = embeddings(clean[None], net.weights)[0][0]
    channel = int(psi.flatten(1).std(dim=1).argmax())
    assert (perfect[1] == signed_picture(psi[channel], psi[channel].abs().flatten().quantile(.995).item())).all()


def test_scores_of_images_are_those_of_one_confusion_matrix():
    predictions = [shifted(y, 2) for y in DATA.labels]
    whole = image_scores(DATA.labels, predictions, 7)
    band = image_scores(DATA.labels, predictions, 7, width=3, void="label")
    for i, (y, p) in enumerate(zip(DATA.labels, predictions)):
        assert whole[i] == mean_iou(confusion(p, y, 7))
        inside = y.masked_fill(trimap(y, 3, void="label") != 1, 255)
        assert band[i] == mean_iou(confusion(p, inside, 7))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.floats(-1, 1), st.just(float("nan"))), min_size=1, max_size=30), st.integers(1, 5))
def test_chosen_images_are_the_ends_and_the_middle(values, each):
    differences = torch.tensor(values, dtype=torch.double)
    known = [v for v in values if v == v]
    if not known:
        with pytest.raises(InputError, match="holds no number"):
            choose_images(differences, each)
        return
    chosen = choose_images(differences, each)
    by_rank = {rank: [values[i] for i, r in chosen if r == rank] for rank in ("best", "median", "worst")}
    assert len({i for i, _ in chosen}) == len(chosen)
    assert [rank for _, rank in chosen] == [rank for rank in by_rank for _ in by_rank[rank]]
    ordered, n = sorted(known, reverse=True), len(by_rank["best"])
    assert by_rank["best"] == ordered[:n]
    if len(known) > 1:
        assert n >= 1 and by_rank["worst"] == ordered[-n:] and n <= each
    if len(known) >= 3:
        assert len(by_rank["median"]) == n and (n == each or len(known) < 3 * each)
        assert min(by_rank["median"]) <= np.median(known) <= max(by_rank["median"]) or n < 2
    if len(known) % 2 and n == 1:
        assert by_rank["median"] == [np.median(known)] or len(known) < 3


def test_chosen_images_show_the_worst_and_their_numbers():
    a, b = [shifted(y, 3) for y in DATA.labels], [shifted(y, 1) for y in DATA.labels]
    b[2] = torch.zeros_like(b[2])
    fig = plot_chosen(DATA, {"a": a, "b": b}, each=1)
    names = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    gains = 100 * (image_scores(DATA.labels, b, 7) - image_scores(DATA.labels, a, 7))
    assert [n.split(":")[0] for n in names] == ["best", "median", "worst"]
    assert DATA.files[2] in names[-1] and f"{gains[2]:+.1f}" in names[-1] and gains[2] < 0
    assert f"above 0 on {(gains > 0).sum()} of 6 images" in fig.get_suptitle()


def test_curves_differ_without_colour_and_keep_to_their_numbers():
    names = [f"run {i}" for i in range(6)]
    fixed = dict(widths=[1, 2, 3], non_boundary_miou=[.5, .6, .7])
    runs = {name: fixed | dict(boundary_miou=[.1 * i, .1 * i + .1, None]) for i, name in enumerate(names)}
    ends = dict(boundary=([0, .05, .1], [.1, .2, .3]), non_boundary=([0] * 3, [1] * 3))
    fig = plot_trimap_curves(runs, {names[0]: ends})
    boundary = fig.axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in boundary.lines}) == 6
    assert boundary.lines[2].get_ydata()[:2] == pytest.approx([20, 30])
    assert [len(ax.collections) for ax in fig.axes] == [1, 1]
    for ax in fig.axes:
        assert sorted(t.get_text() for t in ax.texts) == names
        heights = sorted(t.xyann[1] for t in ax.texts if t.xyann[1] == t.xyann[1])
        assert min(np.diff(heights)) > 0
    assert len(LINE_STYLES) == len(MARKERS) == len(RUN_COLOURS)
    stored = dict(boundary_miou_interval=[[.1, .2]] * 3, non_boundary_miou_interval=[[.4, .6]] * 3)
    kept = plot_trimap_curves({"one": runs["run 1"] | stored})
    assert [len(ax.collections) for ax in kept.axes] == [1, 1]


def test_widths_at_which_classes_leave_are_those_of_the_label():
    found = dict((name, width) for width, name in classes_that_leave(DATA, 10, void="label"))
    assert found
    for width in range(1, 11):
        outside = [trimap(y, width, void="label") == 0 for y in DATA.labels]
        left = {DATA.class_names[c] for y, region in zip(DATA.labels, outside) for c in y[region].unique().tolist()}
        present = {DATA.class_names[c] for y in DATA.labels for c in y.unique().tolist() if c != 255}
        assert {name for name in present if found.get(name, 99) > width} == left


def test_differences_stand_against_the_line_of_none():
    found = dict(boundary=([.01, .02], [0, .01], [.02, .04]), non_boundary=([0, 0], [-.01, -.01], [.01, .01]))
    fig = plot_trimap_differences({"b less a": found})
    none, line = fig.axes[0].lines
    assert list(none.get_ydata()) == [0, 0] and line.get_ydata() == pytest.approx([1, 2])
    assert line.get_color() == RUN_COLOURS[1], "the colour of the run that is compared"
    assert fig.get_suptitle() == "b less a"


def test_saved_figures_keep_caption_and_alternative_text(tmp_path):
    fig = plot_trimaps(DATA, [1])
    caption, alt = "A trimap – red is boundary.", "Thin red lines along the outlines of “objects”."
    path = save_figure(fig, tmp_path / "new" / "trimap.png", caption, alt)
    with Image.open(path) as file:
        file.load()
        assert (file.text["Title"], file.text["Description"]) == (caption, alt)
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == dict(caption=caption, alt=alt)
    assert sorted(p.name for p in path.parent.iterdir()) == ["trimap.json", "trimap.png"]
    for args in (("", alt), (caption, " ")):
        with pytest.raises(InputError, match="is empty; expected a sentence"):
            save_figure(fig, tmp_path / "none" / "x.png", *args)
    with pytest.raises(InputError, match="expected a name that ends in .png"):
        save_figure(fig, tmp_path / "none" / "x.pdf", caption, alt)
    assert not (tmp_path / "none").exists()


# all of the paper's figures in one process, which imports once; argument: each notebook with its parameters
RENDER = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for path, parameters in json.loads(sys.argv[1]):
    shell.reset()
    for cell in json.load(open(path, encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            source += "\\n" + "\\n".join(f"{k} = {v!r}" for k, v in parameters.items())
        shell.run_cell(source, store_history=True).raise_error()
"""
FIGURES = sorted((ROOT / "nbs" / "paper").glob("figure*.ipynb"))


def test_figures_render_from_two_runs(tmp_path):
    "And a figure with a wrong parameter ends with one line, which papermill shows last"
    small = dict(iterations=2, batch_size=2, crop=32, edge_steps=5, val_every=0, log_every=1)
    for loss in ("ppce", "semeda"):
        train(None, loss=loss, **small, runs=str(tmp_path / "runs"))
    folders = f"{tmp_path}/runs/scenes-ppce-s0, {tmp_path}/runs/scenes-semeda-s0"
    both = dict(run_folders=folders, out=str(tmp_path / "out"), count=12)
    parameters = {p: both if p.stem != "figure4" else dict(out=both["out"]) for p in FIGURES}
    parameters[FIGURES[0].with_name("figure5.ipynb")] = both | dict(resamples=50)
    rendered = [[str(path), given] for path, given in parameters.items()]
    wrong = [str(FIGURES[0]), dict(run_folder="x", out=str(tmp_path / "wrong"))]
    done = run(sys.executable, "-c", RENDER, json.dumps([*rendered, wrong]), cwd=tmp_path, env={"MPLBACKEND": "agg"})
    words = "InputError: unknown parameter 'run_folder'; choose from run_folders"
    assert done.returncode != 0 and words in done.stderr.strip().splitlines()[-1], done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    names = [p.stem for p in FIGURES] + ["figure5_differences", "figure5_study"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{n}.{ext}" for n in names for ext in ("png", "json")}
    for name in names:
        words = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
        assert len(words["caption"]) > 20 and len(words["alt"]) > 40 and words["alt"] != words["caption"]
        with Image.open(tmp_path / "out" / f"{name}.png") as file:
            assert len(np.unique(np.asarray(file.convert("L")))) > 20


def test_make_figures_names_every_figure():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", "figures"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "nbs/paper/figure*.ipynb" in done.stdout
    assert [p.stem for p in FIGURES] == [f"figure{n}" for n in (1, 3, 4, 5, 6, 7)]


def test_scores_of_ones_own_metrics_are_drawn_as_scores():
    history = [dict(step=1, lr=.1, loss=2., ppce=1.), dict(step=2, lr=.1, loss=1., ppce=1., val_miou=.5, val_dice=.4)]
    losses, scores = plots.plot_history(history).axes
    assert [line.get_label() for line in losses.lines] == ["total", "PPCE"]
    assert [line.get_label() for line in scores.lines] == ["mIoU", "val_dice"]


def test_terms_of_a_loss_are_drawn_each_in_its_own_way():
    names = [f"term{i}" for i in range(8)]
    lines = plots.plot_history([dict(step=step, lr=.1) | dict.fromkeys(names, 1.) for step in (1, 2)]).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names) == len(lines)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_one_run_with_an_interval_is_enough_for_the_title(order):
    curve = dict(widths=[1, 2], boundary_miou=[.5, .6], non_boundary_miou=[.5, .6])
    ends = dict(boundary=([.4, .5], [.6, .7]), non_boundary=([.4, .5], [.6, .7]))
    titles = [ax.get_title() for ax in plot_trimap_curves(dict.fromkeys(order, curve), dict(a=ends)).axes]
    assert all("95% intervals" in title for title in titles)
    assert not any("95%" in ax.get_title() for ax in plot_trimap_curves(dict(a=curve)).axes)


def test_the_median_of_two_images_is_between_them():
    assert "median +0.0, above 0 on 1 of 2 images" in plots._summary(torch.tensor([-5., 5., float("nan")]), 1)


@pytest.mark.parametrize("style", ["torchvision", "caffe"])
def test_crops_are_drawn_in_the_colours_of_the_photograph(style):
    from semeda.crops import normalise
    from semeda.plots import _photo_of_crop
    image = torch.tensor([200, 60, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    drawn = _photo_of_crop(normalise(image, style=style), style)
    assert abs(np.asarray(drawn).astype(int)[0, 0] - [200, 60, 30]).max() <= 1


def test_masks_are_matched_with_the_images_that_are_shown():
    "Masks of all images beside two indices were drawn as those of the first two"
    data = scenes("val", 4)
    for call in (lambda masks: plots.plot_predictions(data, dict(a=masks), [1, 3]),
                 lambda masks: plots.plot_comparison(data, dict(b=data.labels[:2], a=masks), [1, 3])):
        with pytest.raises(InputError, match="predictions of 'a' are 4 masks; expected 2, one for each image"):
            call(data.labels)
    with pytest.raises(InputError, match="predictions of 'a' are 1 masks; expected 4"):
        plots.trimap_scores(data, dict(a=data.labels[:1]), 3)
    with pytest.raises(InputError, match="are 2 masks; expected 4"):
        image_scores(data.labels, data.labels[:2], 7)


def test_a_row_of_pictures_has_one_for_each_title():
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="a row holds 1 pictures; expected 2, one for each title"):
        plots.picture_grid([[picture, picture], [picture]], ["a", "b"])


@pytest.mark.parametrize("label, opacity, words", [
    (7, .7, "labels contain 7; expected 0..6, or 255 (void)"), (300, .7, "labels contain 300"),
    (-1, .7, "labels contain -1"), (0, 1.5, "opacity is 1.5; expected at most 1")])
def test_overlays_of_what_has_no_colour_are_refused(label, opacity, words):
    data = scenes("val", 1)
    with pytest.raises(InputError) as e:
        overlay(data.images[0], torch.full((96, 96), label), data.palette, opacity)
    assert words in str(e.value)
