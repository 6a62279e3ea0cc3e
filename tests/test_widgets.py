"""The widgets without a browser: a control is set, pictures and numbers must follow."""
import io
import json

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from semeda.core import InputError
from semeda.data import scenes
from semeda.edge_net import embeddings, one_hot, shipped_edge_net, synthetic_masks
from semeda.edges import trimap
from semeda.metrics import TrimapIoU, confusion, mean_iou
from semeda.plots import WRONG_COLOUR, disagreement
from semeda.widgets import (
    encode_png,
    predict_runs,
    run_comparer,
    run_paths,
    share_that_differs,
    texture_explorer,
    trimap_explorer,
)
from tests.conftest import ROOT

DATA = scenes("val", count=4, size=60)
FIRST, SECOND = ([y.masked_fill(y == 255, 0).roll(n, dims=1) for y in DATA.labels] for n in (2, -1))
PALETTE = [(20 * k, 255 - 20 * k, 10 * k) for k in range(11)]


def trimap_widget(): return trimap_explorer(DATA, FIRST, max_width=12, void="label")
def texture_widget():
    return texture_explorer(synthetic_masks(11, count=1, size=48)[0], shipped_edge_net("camvid"), PALETTE)


def comparer_widget(): return run_comparer(DATA, dict(a=FIRST, b=SECOND), void="label")


WIDGETS = [trimap_widget, texture_widget, comparer_widget]


def decoded(view):
    return np.asarray(Image.open(io.BytesIO(view.value)))


def test_png_is_exact_and_enlarged_by_a_whole_factor():
    picture = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(encode_png(picture, least=50)))) == picture).all()
    large = np.asarray(Image.open(io.BytesIO(encode_png(picture, least=120))))
    assert large.shape == (60, 150, 3) and (large[::3, ::3] == picture).all()


def test_trimap_numbers_are_the_metrics_and_pictures_follow():
    explorer = trimap_widget()
    for image in (0, 1, 3):
        explorer.controls["image"].value = image
        metric = TrimapIoU(7, max_width=12, void="label")
        metric.update(FIRST[image][None], DATA.labels[image][None])
        scores = metric.compute()
        for width in (1, 4, 12):
            before = explorer.views[0].value
            explorer.controls["width"].value = width
            for name, key in (("boundary mIoU (%)", "boundary"), ("non-boundary mIoU (%)", "non_boundary")):
                expected = 100 * scores[key][width - 1].item()
                assert explorer.numbers[name] == pytest.approx(expected, nan_ok=True)
            assert explorer.numbers["mIoU (%)"] == pytest.approx(100 * scores["miou"].item())
            assert f"<b>{explorer.words()['boundary mIoU (%)']}</b>" in explorer.text.value
            assert explorer.views[0].value != before
            regions = trimap(DATA.labels[image], width, void="label")
            wrong = (FIRST[image] != DATA.labels[image]) & (regions == 1)
            red = (decoded(explorer.views[3])[::4, ::4] == WRONG_COLOUR).all(axis=-1)
            assert (red == wrong.numpy()).all()


def test_trimap_predictions_may_come_from_a_function():
    asked = []
    explorer = trimap_explorer(DATA, lambda i: asked.append(i) or FIRST[i], max_width=5)
    for width in (1, 2, 5):
        explorer.controls["width"].value = width
    assert asked == [0]
    explorer.controls["image"].value = 2
    assert asked == [0, 2]


@pytest.mark.parametrize("layer, channel", [(1, 3), (2, 31), (3, 1)])
def test_texture_is_that_of_the_edge_net(layer, channel):
    label, net = synthetic_masks(11, count=1, size=48)[0], shipped_edge_net("camvid")
    explorer = texture_explorer(label, net, PALETTE, seed=5)
    explorer.controls["layer"].value = layer
    assert explorer.controls["channel"].max == (16, 32, 2)[layer - 1] - 1
    before = explorer.views[2].value
    for name, value in dict(channel=channel, noise=.6, scale=3.).items():
        explorer.controls[name].value = value
    clean, known = one_hot(label[None], 11), label != 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    soft = (3 * (clean + .6 * noise)).softmax(dim=1) * known
    seen, true = (embeddings(masks, net.weights)[layer - 1][0, channel] for masks in (soft, clean))
    difference, largest = (seen - true).abs()[known].mean().item(), soft[0].amax(dim=0)[known].mean().item()
    assert explorer.numbers["mean |difference|"] == pytest.approx(difference, rel=1e-4)
    assert explorer.numbers["largest probability, mean"] == pytest.approx(largest, rel=1e-4)
    assert explorer.views[2].value != before


def test_texture_draws_once_for_a_new_layer():
    explorer = texture_widget()
    drawn, draw = [], explorer.draw
    explorer.draw = lambda **values: drawn.append(values) or draw(**values)
    explorer.controls["layer"].value = 1
    explorer.controls["layer"].value = 3
    assert [values["layer"] for values in drawn] == [1, 3]
    assert drawn[1]["channel"] == explorer.controls["channel"].value


def test_comparer_scores_pictures_and_order():
    explorer = comparer_widget()
    share = [share_that_differs(*three) for three in zip(FIRST, SECOND, DATA.labels)]
    order = sorted(range(4), key=lambda i: -share[i])
    assert [i for _, i in explorer.jump.options[1:]] == order and f"{max(share):.1f}%" in explorer.jump.options[1][0]
    for i in order:
        explorer.jump.value = i
        assert explorer.controls["image"].value == i
        known = trimap(DATA.labels[i], 1, void="label")
        inside = DATA.labels[i].masked_fill(known != 1, 255)
        runs = (("mIoU of 1 (%)", FIRST, "boundary mIoU of 1 (%)"), ("of 2", SECOND, "boundary of 2"))
        for name, masks, edge in runs:
            whole, band = (100 * mean_iou(confusion(masks[i], y, 7)).item() for y in (DATA.labels[i], inside))
            assert explorer.numbers[name] == pytest.approx(whole)
            assert explorer.numbers[edge] == pytest.approx(band)
        assert explorer.numbers["pixels that differ (%)"] == pytest.approx(share[i])
        picture = disagreement(DATA.images[i], DATA.labels[i], FIRST[i], SECOND[i])
        assert (decoded(explorer.views[3])[::4, ::4] == picture).all()


def test_comparer_opacity_and_only_disagreement():
    explorer = comparer_widget()
    photo, agree = DATA.images[0].permute(1, 2, 0).numpy(), (FIRST[0] == SECOND[0]).numpy()
    explorer.controls["opacity"].value = 1.
    assert (decoded(explorer.views[1])[::4, ::4] == np.array(DATA.palette)[FIRST[0].long()]).all()
    explorer.controls["only"].value = True
    shown = decoded(explorer.views[1])[::4, ::4]
    coloured = np.array(DATA.palette)[FIRST[0].long()]
    assert (shown[agree] == photo[agree]).all() and (shown[~agree] == coloured[~agree]).all()
    explorer.controls["opacity"].value = 0.
    assert (decoded(explorer.views[2])[::4, ::4] == photo).all()


def test_comparer_of_three_runs_ranks_the_chosen_two():
    third = [torch.zeros_like(y) for y in DATA.labels]
    explorer = run_comparer(DATA, dict(a=FIRST, b=SECOND, c=third))
    assert (explorer.controls["first"].value, explorer.controls["second"].value) == ("a", "c")
    before = explorer.jump.options
    explorer.jump.value = before[-1][1]
    explorer.controls["second"].value = "b"
    assert explorer.jump.value == explorer.controls["image"].value == before[-1][1], "the chosen image stays"
    assert explorer.jump.options != before and "b" in explorer.titles[2].value
    explorer.controls["second"].value = "a"
    assert explorer.numbers["pixels that differ (%)"] == 0
    with pytest.raises(InputError, match="predictions has 1 runs; expected at least two"):
        run_comparer(DATA, dict(a=FIRST))


@pytest.mark.parametrize("make", WIDGETS)
def test_every_control_is_described_and_stands_in_the_widget(make):
    explorer = make()
    kinds = (ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.Dropdown, ipywidgets.Checkbox)
    inside = [control for control in explorer.children if isinstance(control, kinds)]
    assert set(explorer.controls.values()) <= set(inside)
    assert len({c.description for c in inside}) == len(inside) and all(c.description for c in inside)


@pytest.mark.parametrize("make", WIDGETS)
def test_still_picture_shows_the_same_state(make, monkeypatch):
    explorer = make()
    fig = explorer.static()
    shown = [np.asarray(image.get_array()) for ax in fig.axes for image in ax.images]
    assert len(shown) == len(explorer.arrays) and all((a == b).all() for a, b in zip(shown, explorer.arrays))
    assert all(value in fig.get_suptitle() for value in explorer.words().values())
    bundle, metadata = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/png"].startswith("iVBOR") and "alt" in metadata["image/png"]
    monkeypatch.setenv("SEMEDA_STATIC", "1")
    assert set(explorer._repr_mimebundle_()[0]) == {"image/png", "text/plain"}
    plt.close("all")


def test_an_error_in_a_callback_is_raised(monkeypatch):
    # outside of a notebook; an earlier test of this process may have begun a shell
    monkeypatch.setattr("ipywidgets.widgets.widget_output.get_ipython", lambda: None)

    def predict(i):
        if i == 2: raise InputError("image 2 cannot be predicted; expected another")
        return FIRST[i]
    explorer = trimap_explorer(DATA, predict, max_width=5)
    with pytest.raises(InputError, match="image 2 cannot be predicted"):
        explorer.controls["image"].value = 2


def test_an_error_in_a_callback_is_shown_in_the_page(monkeypatch):
    "In Jupyter the error goes to the widget's own output, and away with the next change"
    seen, cleared = [], []
    class Shell:
        kernel = None
        def showtraceback(self, error, tb_offset=None): seen.append(str(error[1]))
    def predict(i):
        if i == 2: raise InputError("image 2 cannot be predicted; expected another")
        return FIRST[i]
    explorer = trimap_explorer(DATA, predict, max_width=5)
    monkeypatch.setattr("ipywidgets.widgets.widget_output.get_ipython", Shell)
    monkeypatch.setattr(explorer.errors, "clear_output", lambda: cleared.append(True), raising=False)
    explorer.controls["image"].value = 2
    assert seen == ["image 2 cannot be predicted; expected another"] and not cleared
    explorer.controls["image"].value = 1
    assert len(seen) == 1 and cleared == [True] and not explorer.failed


def test_runs_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run demo/scenes-ppce-s0 is not in runs; run `make demo` first"):
        run_paths()
    assert [p.name for p in run_paths(" a/x, b ")] == ["x", "b"]
    with pytest.raises(InputError, match="run folder x has no metrics.json; expected a finished run"):
        predict_runs(run_paths("x,y"))


def test_kept_widgets_are_still_pictures():
    "A widget view without its kernel is an error on the page"
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                live = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
                assert not live, f"{path.name}: execute with SEMEDA_STATIC=1"
