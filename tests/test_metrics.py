import json
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import distributed
from torchmetrics import Metric, MetricCollection

from benchmarks import trimap as benchmark
from semeda.core import InputError
from semeda.counts import void_pixels
from semeda.edges import edge_map
from semeda.intervals import paired_mean
from semeda.metrics import (
    METRICS,
    BoundaryIoU,
    MeanIoU,
    MetricRecord,
    Structure,
    TrimapIoU,
    bootstrap,
    boundary_iou_counts,
    build_metrics,
    class_counts,
    confusion,
    history_columns,
    history_values,
    iou,
    mean_iou,
    metric_entries,
    paired_bootstrap,
    scores_of,
    structure_counts,
    trimap_counts,
)
from semeda.report import score_rows
from tests.conftest import ROOT
from tests.test_edges import brute_edges

SQUARE = np.ones((3, 3), bool)
blocks = st.tuples(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 24), st.integers(1, 5))
voids = st.sampled_from(["ignore", "label"])


def draw(seed, height, width, block, classes=(0, 1, 2, 255)):
    "A label mask of blocks and a prediction that is partly right, as arrays"
    rng = np.random.default_rng(seed)
    blocks_of = rng.choice(classes, (-(-height // block), -(-width // block)))
    label = np.kron(blocks_of, np.ones((block, block), int))[:height, :width]
    wrong = rng.random(label.shape) < .4
    return np.where(wrong | (label == 255), rng.integers(0, 4, label.shape), label), label


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def by_hand(prediction, label, keep, classes):
    "Mean IoU over the kept pixels, class by class"
    scores = []
    for c in range(classes):
        p, t = (prediction == c) & keep, (label == c) & keep
        if (p | t).any():
            scores.append((p & t).sum() / (p | t).sum())
    return np.mean(scores) if scores else np.nan


@settings(max_examples=80, deadline=None)
@given(blocks, voids)
def test_every_width_is_edge_dilated_mask_counted(size, void):
    prediction, label = draw(*size)
    metric = TrimapIoU(4, max_width=7, void=void)
    metric.update(*tensors(prediction[None], label[None]))
    scores = metric.compute()
    np.testing.assert_allclose(scores["miou"], by_hand(prediction, label, label != 255, 4))
    band = brute_edges(label, void) == 1
    for w in range(1, 8):
        np.testing.assert_allclose(scores["boundary"][w - 1], by_hand(prediction, label, band & (label != 255), 4))
        np.testing.assert_allclose(scores["non_boundary"][w - 1], by_hand(prediction, label, ~band & (label != 255), 4))
        band = ndimage.binary_dilation(band, SQUARE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("classes, ignore_index", [(4, 255), (4, 200), (255, 255), (300, 299)])
def test_dtypes_and_many_classes(dtype, classes, ignore_index):
    if dtype == torch.uint8 and ignore_index > 255:
        pytest.skip("uint8 cannot hold it")
    prediction, label = tensors(*draw(0, 20, 30, 4))
    want = trimap_counts(prediction, label, 4, 5)
    label = torch.where(label == 255, ignore_index, label)
    counts = trimap_counts(prediction.to(dtype), label.to(dtype), classes, 5, ignore_index)
    assert torch.equal(counts[:, :4, :4], want) and counts.sum() == want.sum()
    assert torch.equal(confusion(prediction.to(dtype), label.to(dtype), classes, ignore_index), counts.sum(0))


def test_void_of_other_number_and_arguments_are_left_alone():
    prediction, label = tensors(*draw(1, 12, 12, 3))
    before = prediction.clone(), label.clone()
    negative = torch.where(label == 255, -100, label)
    want = trimap_counts(prediction, label, 4, 5, 255, "label")
    assert torch.equal(trimap_counts(prediction, negative, 4, 5, -100, "label"), want)
    boundary_iou_counts(prediction, label, 4, 2)
    structure_counts(prediction, label, 4)
    small = label.to(torch.uint8)
    trimap_counts(prediction.to(torch.uint8), small, 4)
    assert torch.equal(prediction, before[0]) and torch.equal(label, before[1]) and torch.equal(small.long(), label)


@pytest.mark.parametrize("make", [MeanIoU, BoundaryIoU, Structure, lambda *a, **b: TrimapIoU(*a, max_width=3, **b)])
def test_labels_without_void(make):
    "As the losses take them: `ignore_index=None`, and 255 is a wrong class"
    g = torch.Generator().manual_seed(0)
    prediction, label = (torch.randint(0, 3, (2, 9, 8), generator=g) for _ in range(2))
    without, usual = make(3, ignore_index=None), make(3)
    for metric in (without, usual):
        metric.update(prediction, label)
    torch.testing.assert_close(without.compute(), usual.compute(), rtol=0, atol=0, equal_nan=True)
    label[0, 0, 0] = 255
    with pytest.raises(InputError, match="labels lie in 0..255; expected 0..2"):
        without.update(prediction, label)


@pytest.mark.parametrize("given, words", [
    (dict(width=2.5), "width is 2.5; expected a whole number"), (dict(ratio=2), "ratio is 2; expected at most 1"),
    (dict(ratio=-1), "ratio is -1; expected at least 0"), (dict(width=0), "width is 0; expected 1")])
def test_widths_of_boundary_iou_that_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        BoundaryIoU(3, **given)


def test_masks_that_are_no_tensors_are_told():
    with pytest.raises(InputError, match="predictions are a ndarray; expected a tensor of integers"):
        MeanIoU(3).update(np.zeros((2, 2), int), torch.zeros(2, 2, dtype=torch.long))


def test_absent_class_is_left_out_and_named():
    counts = torch.tensor([[4, 0, 0], [0, 2, 0], [0, 0, 0]])
    assert iou(counts)[2].isnan() and mean_iou(counts) == 1
    label = torch.tensor([[[0, 0, 1, 255]]])
    for metric in (MeanIoU(4), TrimapIoU(4, 1), BoundaryIoU(4), Structure(4)):
        metric.update(torch.tensor([[[0, 0, 2, 3]]]), label)
        scores = metric.compute()
        assert scores["absent"].tolist() == [False, False, False, True], metric
    nothing = TrimapIoU(3, 2)
    nothing.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255))
    assert nothing.compute()["miou"].isnan() and nothing.compute()["absent"].all()


def test_one_class_and_one_width_keep_their_shapes():
    x = torch.zeros(1, 3, 3, dtype=torch.long)
    metric = TrimapIoU(1, max_width=1, per_image=True)
    metric.update(x, x)
    shapes = {k: tuple(v.shape) for k, v in metric.compute().items()}
    widths = ("boundary", "non_boundary", "boundary_classes", "non_boundary_classes")
    assert shapes == dict(miou=(), iou=(1,), absent=(1,)) | dict.fromkeys(widths, (1,))
    assert {k: tuple(v.shape) for k, v in metric.compute().items()} == shapes # from torchmetrics' cache
    assert metric.per_image()[1].shape == (1, 2, 3, 1)
    for other in (BoundaryIoU(1), MeanIoU(1), Structure(1)):
        other.update(x, x)
        assert other.compute()["absent"].shape == (1,)


def test_reset_and_state_dict():
    prediction, label = tensors(*draw(2, 16, 16, 3))
    metric = TrimapIoU(4, 3, per_image=True)
    metric.update(prediction, label)
    first = metric.compute()["boundary"]
    metric.reset()
    assert metric.counts.sum() == 0
    metric.update(prediction, label)
    assert torch.equal(metric.compute()["boundary"], first) and metric.per_image()[0].tolist() == [0]


# Splits: the same counts however the images are dealt out

def split_of(n=7):
    arrays = [draw(i, 24, 30, 3) for i in range(n)]
    return [torch.from_numpy(np.stack(a)) for a in zip(*arrays)]


def all_metrics():
    return dict(trimap=TrimapIoU(4, 5, per_image=True), mean=MeanIoU(4), boundary=BoundaryIoU(4, width=2),
                structure=Structure(4, small=4))


def outcome(metrics):
    keys, counts = metrics["trimap"].per_image()
    found = {f"{n} {k}": v for n, m in metrics.items() for k, v in m.compute().items()}
    return found | dict(keys=keys, counts=counts)


def feed(metrics, batches):
    predictions, labels = split_of()
    for batch in batches:
        for name, metric in metrics.items():
            metric.update(predictions[batch], labels[batch], *[torch.tensor(batch)] * (name == "trimap"))
    return outcome(metrics)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("batches", [[[i] for i in range(7)], [[6, 0], [5], [1, 2, 4, 3]]])
def test_batches_and_order_do_not_matter(batches):
    whole = feed(all_metrics(), [list(range(7))])
    same(feed(all_metrics(), batches), whole)
    scores = {k: whole[f"trimap {k}"] for k in ("miou", "boundary", "non_boundary")}
    same(scores_of(whole["counts"].sum(0)), scores)


def test_running_numbers_are_the_keys():
    predictions, labels = split_of()
    metric = TrimapIoU(4, 5, per_image=True)
    for batch in ([0], [1, 2, 3], [4, 5, 6]):
        metric.update(predictions[batch], labels[batch])
    keys, counts = metric.per_image()
    assert keys.tolist() == list(range(7))
    for i in range(7):
        assert torch.equal(counts[i], class_counts(trimap_counts(predictions[i], labels[i], 4, 5)))


SHARES = dict(shared=[[[6, 1], [3], [0, 5]], [[4, 2]]], one_has_none=[[[0, 1, 2, 3, 4, 5, 6]], []])


def work(rank, folder):
    "One of two processes: counts its share of the images"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for how, shares in SHARES.items():
        torch.save(feed(all_metrics(), shares[rank]), folder / f"{how}{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork") # which need not import torch again
    workers = [context.Process(target=work, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
        assert worker.exitcode == 0
    whole = feed(all_metrics(), [list(range(7))])
    for how in SHARES:
        for rank in range(2):
            same(torch.load(tmp_path / f"{how}{rank}.pt"), whole)


def test_repeated_images_are_told():
    predictions, labels = split_of()
    metric = TrimapIoU(4, 5, per_image=True)
    metric.update(predictions[:3], labels[:3], torch.tensor([4, 0, 2]))
    metric.update(predictions[:1], labels[:1], torch.tensor([4]))
    with pytest.raises(InputError, match="keys contain 4 twice; expected each image once"):
        metric.per_image()


# Boundary IoU

def band_of_mask(mask, outside, width, void):
    "The authors' definition: pad with 0, erode `width` times with a 3x3 square, take away from the mask"
    solid = np.pad(mask | outside if void == "ignore" else mask, 1)
    return mask & ~ndimage.binary_erosion(solid, SQUARE, iterations=width)[1:-1, 1:-1]


@settings(max_examples=80, deadline=None)
@given(blocks, voids, st.integers(1, 6))
def test_boundary_iou_is_each_masks_own(size, void, width):
    prediction, label = draw(*size)
    outside = label == 255
    counts = boundary_iou_counts(*tensors(prediction, label), 4, width, void=void)
    for k in range(4):
        g = band_of_mask((label == k), outside, width, void)
        p = band_of_mask((prediction == k) & ~outside, outside, width, void)
        assert counts[:, k].tolist() == [(g & p).sum(), (g | p).sum()]


def test_label_map_trap():
    label = np.full((20, 20), 3)
    label[:, 10:] = 5
    prediction = np.full((20, 20), 3)
    prediction[:, 9:] = 5
    padded = np.pad(label, 1)
    # erosion of the label map as grey values: class 3 has no boundary towards class 5
    trap = (label - ndimage.grey_erosion(padded, (5, 5))[1:-1, 1:-1]) != 0
    inner = np.s_[5:-5, 5:-5]
    assert (trap & (label == 5))[inner].any() and not (trap & (label == 3))[inner].any()
    for k in (3, 5):
        own = band_of_mask(label == k, label == 255, 2, "ignore")
        assert own[inner].any()
        union = own | band_of_mask(prediction == k, label == 255, 2, "ignore")
        assert boundary_iou_counts(*tensors(prediction, label), 6, 2)[1, k] == union.sum()
    # the trap's score of class 3 would be that of the image's border alone
    trapped = trap & (label == 3)
    assert boundary_iou_counts(*tensors(label, label), 6, 2)[0, 3] > trapped.sum()


@pytest.mark.parametrize("shape, width, expected", [
    ((360, 480), None, 12), ((1024, 2048), None, 46), ((10, 10), None, 1), ((50, 70), 3, 3)])
def test_boundary_width_is_a_share_of_the_diagonal_or_pixels(shape, width, expected):
    label = torch.zeros(1, *shape, dtype=torch.long)
    label[:, :, shape[1] // 2:] = 1
    metric = BoundaryIoU(2, width=width)
    metric.update(label, label)
    assert torch.equal(metric.counts, boundary_iou_counts(label, label, 2, expected))
    assert metric.compute()["boundary_iou"] == 1


# Holes and fragments

def flood(mask, neighbours):
    "Connected components by filling, as sets of pixels"
    left, found = set(map(tuple, np.argwhere(mask))), []
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            i, j = edge.pop()
            piece.add((i, j))
            for di, dj in neighbours:
                if (i + di, j + dj) in left:
                    left.remove((i + di, j + dj))
                    edge.append((i + di, j + dj))
        found.append(piece)
    return found


CROSS = [(0, 1), (0, -1), (1, 0), (-1, 0)]
AROUND = CROSS + [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def structure_by_flood(classes, void, k, small):
    mask = (classes == k) & ~void
    fragments = flood(mask, AROUND)
    height, width = mask.shape

    def is_open(piece):
        return any(void[i, j] or i in (0, height - 1) or j in (0, width - 1) for i, j in piece)

    holes = sum(not is_open(piece) for piece in flood(~mask, CROSS))
    return holes, len(fragments), sum(map(len, fragments)), sum(len(f) for f in fragments if len(f) < small)


@settings(max_examples=60, deadline=None)
@given(blocks, st.integers(1, 12))
def test_structure_equals_flood_filling(size, small):
    prediction, label = draw(*size)
    void = label == 255
    counts = structure_counts(*tensors(prediction, label), 4, small)
    for k in range(4):
        holes, fragments, area, small_area = structure_by_flood(prediction, void, k, small)
        label_holes, label_fragments, *_ = structure_by_flood(label, void, k, small)
        want = dict(holes=holes, fragments=fragments, label_holes=label_holes, label_fragments=label_fragments,
                    area=area, small_area=small_area)
        assert {name: int(v[k]) for name, v in counts.items()} == want
        if not void.any():
            filled = ndimage.binary_fill_holes(prediction == k)
            assert holes == ndimage.label(filled & (prediction != k))[1]


RING = """
.......
.#####.
.#...#.
.#...#.
.#...#.
.#####.
......."""


def mask_of(text, void="v"):
    return np.array([[{".": 0, "#": 1, void: 255}[c] for c in row] for row in text.split()])


@pytest.mark.parametrize("change, holes, fragments", [
    ({}, 1, 1), # a ring
    ({(2, 3): 255}, 0, 1), # its hole touches void
    # a missing corner does not open it: the mask holds together across corners, its complement does not
    ({(1, 1): 0}, 1, 1),
    ({(1, 3): 0}, 0, 1), # a gap opens it
    ({(1, 3): 0, (5, 3): 0}, 0, 2), # two gaps split it
    ({(1, 1): 255}, 1, 1), # void beside the ring, not in its hole
    ({(3, 3): 1}, 1, 2), # an island in the hole
])
def test_hand_made_structures(change, holes, fragments):
    mask = mask_of(RING)
    for where, value in change.items():
        mask[where] = value
    prediction = np.where(mask == 255, 0, mask)
    counts = structure_counts(*tensors(prediction, mask), 2)
    assert (counts["holes"][1], counts["fragments"][1]) == (holes, fragments)
    assert torch.equal(counts["holes"], counts["label_holes"])
    assert torch.equal(counts["fragments"], counts["label_fragments"])


def test_excess_is_of_each_image_and_class():
    ring, full = mask_of(RING), mask_of(RING)
    full[2:5, 2:5] = 1
    split = full.copy()
    split[:, 3] = 0
    metric = Structure(2, small=20)
    for prediction, label in ((ring, full), (full, ring), (split, full)):
        metric.update(*tensors(prediction[None], label[None]))
    scores = metric.compute()
    # the first has a hole too many and a piece of class 0 in it; the second one too few, which makes up for nothing;
    # the third is in two pieces, which are two holes of class 0
    assert scores["excess_holes_per_class"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert scores["excess_fragments_per_class"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert scores["excess_fragments"] == pytest.approx(2 / 3) and scores["excess_holes"] == pytest.approx(2 / 3)
    # class 1 has 16, 25 and 10 + 10 pixels, class 0 the other 33 (24 + 9), 24 and 29 of 49
    assert scores["small_area_per_class"].tolist() == pytest.approx([9 / 86, 36 / 61])
    assert scores["small_area"] == pytest.approx(45 / 147)


# Intervals

def images_like(rng, n, shift=0.):
    "Class counts of n images, W = 1: correct shares vary from image to image; model b's is higher by `shift`"
    pixels = rng.integers(200, 2000, (n, 2, 2))
    share = np.clip(rng.normal(.7, .12, (n, 1, 1)), 0, 1)
    out = []
    for gain in (0., shift):
        right = rng.binomial(pixels, np.clip(share + gain + rng.normal(0, .03, (n, 1, 1)), 0, 1))
        predicted = right + (pixels - right)[:, :, ::-1]
        out.append(torch.from_numpy(np.stack([right, pixels, predicted], axis=2)).int())
    return out


def test_identical_runs_differ_by_nothing():
    a, _ = images_like(np.random.default_rng(0), 30)
    for value, low, high in paired_bootstrap(a, a, resamples=200).values():
        assert (value == 0).all() and (low <= 0).all() and (high >= 0).all()


def test_interval_covers_planted_difference():
    truth = images_like(np.random.default_rng(1), 200_000, .03)
    scores = [scores_of(counts.sum(0).long()) for counts in truth]
    truth = {k: scores[1][k] - scores[0][k] for k in ("miou", "boundary")}
    assert truth["miou"] > .02
    hits, trials = dict(miou=0, boundary=0), 300
    for i in range(trials):
        intervals = paired_bootstrap(*images_like(np.random.default_rng(100 + i), 60, .03), resamples=400, seed=i)
        for name in hits:
            _, low, high = intervals[name]
            hits[name] += bool((low <= truth[name]).all() and (truth[name] <= high).all())
    assert all(.91 <= n / trials <= .98 for n in hits.values()), hits


def test_pairing_narrows_the_interval_and_the_seed_decides():
    a, b = images_like(np.random.default_rng(2), 80, .03)
    _, low, high = paired_bootstrap(a, b, seed=3)["miou"]
    assert low > 0
    single = [bootstrap(x, seed=3)["miou"] for x in (a, b)]
    assert high - low < .5 * min(h - l for _, l, h in single)
    assert all(l < v < h for v, l, h in single)
    first, again, other = (paired_bootstrap(a, b, seed=seed)["miou"] for seed in (3, 3, 4))
    assert first == again != other
    narrow = bootstrap(a, level=.5, seed=3)["miou"]
    assert narrow[2] - narrow[1] < single[0][2] - single[0][1]


def test_bootstrap_is_resampling_images():
    a, b = images_like(np.random.default_rng(3), 6, .1)
    picked = torch.randint(6, (50, 6), generator=torch.Generator().manual_seed(5))
    draws = torch.stack([scores_of(b[p].sum(0))["miou"] - scores_of(a[p].sum(0))["miou"] for p in picked])
    _, low, high = paired_bootstrap(a, b, resamples=50, level=.9, seed=5)["miou"]
    ends = draws.quantile(torch.tensor([.05, .95], dtype=torch.double))
    torch.testing.assert_close(torch.stack([low, high]), ends)


def test_paired_mean_is_that_of_the_differences():
    a, b = [1., 4., 10., 2.], [2.5, 3., 11., 7.]
    picked = torch.randint(4, (60, 4), generator=torch.Generator().manual_seed(2))
    draws = torch.tensor([1.5, -1., 1., 5.], dtype=torch.double)[picked].mean(dim=1)
    mean, low, high = paired_mean(a, b, resamples=60, level=.9, seed=2)
    assert mean == 1.625
    ends = draws.quantile(torch.tensor([.05, .95], dtype=torch.double))
    torch.testing.assert_close(torch.stack([low, high]), ends)


# The registry

class Number(Metric):
    "A metric of another project: one number, of no class"
    def __init__(self, scale=1):
        super().__init__()
        self.scale = scale
        self.add_state("total", torch.tensor(0.), dist_reduce_fx="sum")

    def update(self, predictions, labels):
        self.total += labels.numel()

    def compute(self):
        return self.total * self.scale


@pytest.fixture
def number():
    yield METRICS.register("number", MetricRecord("number", Number, "pixels seen", scale=1, digits=0))
    METRICS.pop("number")


def test_a_metric_made_of_ours_gets_all_settings():
    class Mine(TrimapIoU):
        def __init__(self, **settings):
            super().__init__(**settings)
    METRICS.register("mine", MetricRecord("mine", Mine))
    try:
        assert "mine" in build_metrics(num_classes=3, max_width=4, void="label")
    finally:
        del METRICS["mine"]


def test_a_metric_of_torchmetrics_gets_what_it_names():
    "Its further settings are torchmetrics' own, which knows neither widths nor void"
    from torchmetrics.classification import MulticlassAccuracy
    METRICS.register("accuracy", MetricRecord("accuracy", MulticlassAccuracy))
    try:
        built = build_metrics(num_classes=3, max_width=4, void="label")
        assert built["accuracy"].num_classes == 3 and "trimap" in built
    finally:
        del METRICS["accuracy"]


def test_a_registered_metric_is_in_a_run_and_in_tables(number):
    assert history_columns() == ["val_miou", "val_boundary_miou", "val_number"]
    metrics = build_metrics(in_run=True, num_classes=4, max_width=3, void="label")
    assert list(metrics) == ["trimap", "number"] and metrics["trimap"].settings["void"] == "label"
    for metric in metrics.values():
        metric.update(*tensors(*draw(0, 8, 8, 2)))
    entries = metric_entries({name: m.compute() for name, m in metrics.items()}, list("abcd"))
    own = dict(number=dict(by_class=torch.ones(4), table=torch.ones(4, 2), of_all=torch.tensor(3.)))
    expected = dict(by_class=dict.fromkeys("abcd", 1.), table=[[1., 1.]] * 4, of_all=3.)
    assert metric_entries(own, list("abcd")) == expected
    assert entries["number"] == 64 and history_values(entries)["val_number"] == 64
    assert list(entries)[:6] == "miou iou absent_classes widths boundary_miou non_boundary_miou".split()
    assert score_rows(entries)[-1] == ["pixels seen", "64", ""]
    with pytest.raises(InputError, match="metric 'number' is registered already"):
        METRICS.register("number", MetricRecord("number", MeanIoU))


def test_no_two_metrics_report_the_same_name(number):
    METRICS["number"] = MetricRecord("number", Number, entries=lambda result, names: dict(miou=0.))
    metric = build_metrics(in_run=True, num_classes=4, max_width=3)["trimap"]
    metric.update(*tensors(*draw(0, 8, 8, 2)))
    trimap = metric.compute()
    with pytest.raises(InputError, match="metric 'number' reports 'miou' like another metric; expected another name"):
        metric_entries(dict(trimap=trimap, number=0.), list("abcd"))


@pytest.mark.parametrize("ignore_index", [-1, 300])
def test_void_that_a_dtype_cannot_hold_is_on_no_pixel(ignore_index):
    "As for `edge_map`: 255 in uint8 labels is not -1"
    label = torch.tensor([[0, 255], [1, 1]], dtype=torch.uint8)
    assert not edge_map(label, ignore_index=ignore_index).eq(255).any()
    assert not void_pixels(label, ignore_index).any() and void_pixels(label.long() - 256, -1)[0, 1]
    with pytest.raises(InputError, match="labels lie in 0..255; expected 0..1"):
        confusion(label.clamp(max=1), label, 2, ignore_index)


# Bad input

ZEROS = torch.zeros(1, 2, 2, dtype=torch.long)
COUNTS = torch.ones(3, 2, 3, 2)


@pytest.mark.parametrize("call, words", [
    (lambda: trimap_counts(ZEROS, torch.zeros(1, 2, 3).long(), 3),
     "predictions have shape (1, 2, 2); expected the labels' (1, 2, 3)"),
    (lambda: trimap_counts(ZEROS + 3, ZEROS, 3), "predictions lie in 3..3; expected 0..2"),
    (lambda: trimap_counts(ZEROS, ZEROS + 7, 3), "labels lie in 7..7; expected 0..2"),
    (lambda: trimap_counts(ZEROS - 1, ZEROS, 3), "predictions lie in -1..-1; expected 0..2"),
    (lambda: confusion(ZEROS + 255, ZEROS, 3), "predictions lie in 255..255; expected 0..2"),
    (lambda: confusion(ZEROS.float(), ZEROS, 3), "predictions are torch.float32; expected an integer dtype"),
    (lambda: confusion(ZEROS, ZEROS, 0), "num_classes is 0; expected 1..30000"),
    (lambda: confusion(ZEROS, ZEROS, 30001), "num_classes is 30001; expected 1..30000"),
    (lambda: trimap_counts(ZEROS, ZEROS, 3, 0), "max_distance is 0; expected 1..254"),
    (lambda: trimap_counts(ZEROS, ZEROS, 3, void="skip"), "void is 'skip'; expected 'ignore' or 'label'"),
    (lambda: boundary_iou_counts(ZEROS, ZEROS, 3, 0), "width is 0; expected at least 1 pixel"),
    (lambda: boundary_iou_counts(ZEROS, ZEROS, 3, 1, void="skip"), "void is 'skip'; expected 'ignore' or 'label'"),
    (lambda: structure_counts(ZEROS, ZEROS, 3), "labels have shape (1, 2, 2); expected (H, W), one image"),
    (lambda: TrimapIoU(3).per_image(), "per_image is False; expected a metric made with per_image=True"),
    (lambda: TrimapIoU(3, per_image=True).update(ZEROS, ZEROS, torch.arange(2)),
     "keys have 2 elements; expected one for each of 1 images"),
    (lambda: confusion(ZEROS.byte() + 255, ZEROS.byte() + 255, 3, -1), "predictions lie in 255..255; expected 0..2"),
    (lambda: METRICS.find("miou"), "metric is 'miou'; choose from trimap, boundary_iou, structure"),
    (lambda: bootstrap(COUNTS[0]), "counts have shape (2, 3, 2); expected (N, W + 1, 3, C) with N at least 1"),
    (lambda: bootstrap(COUNTS[:0]), "counts have shape (0, 2, 3, 2); expected (N, W + 1, 3, C) with N at least 1"),
    (lambda: paired_bootstrap(COUNTS, COUNTS[:2]),
     "counts have shapes (3, 2, 3, 2) and (2, 2, 3, 2); expected two runs on the same images"),
    (lambda: bootstrap(COUNTS, level=95), "level is 95; expected a share between 0 and 1"),
    (lambda: bootstrap(COUNTS, resamples=0), "resamples is 0; expected at least 1"),
])
def test_bad_input(call, words):
    with pytest.raises(InputError) as e:
        call()
    assert str(e.value) == words


def test_a_refused_batch_counts_nowhere():
    metric = TrimapIoU(3, 2, per_image=True)
    with pytest.raises(InputError):
        metric.update(torch.stack([ZEROS[0], ZEROS[0] + 5]), torch.cat([ZEROS, ZEROS]))
    assert metric.counts.sum() == 0 and metric.image_keys == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch finds no GPU")
def test_gpu_equals_cpu():
    predictions, labels = split_of()
    for void in ("ignore", "label"):
        for count, size in ((trimap_counts, 9), (boundary_iou_counts, 3)):
            on_gpu = count(predictions.cuda(), labels.cuda(), 4, size, 255, void).cpu()
            assert torch.equal(on_gpu, count(predictions, labels, 4, size, 255, void))
    assert torch.equal(edge_map(labels.cuda()).cpu(), edge_map(labels))
    on_gpu = {k: m.cuda() for k, m in all_metrics().items()}
    for name, metric in on_gpu.items():
        metric.update(predictions.cuda(), labels.cuda(), *[torch.arange(7)] * (name == "trimap"))
    same({k: v.cpu() for k, v in outcome(on_gpu).items()}, feed(all_metrics(), [list(range(7))]))
    keys, counts = on_gpu["trimap"].per_image()
    ours, theirs = (bootstrap(x, 100) for x in (counts, counts.cpu()))
    same({k: torch.stack(v).cpu() for k, v in ours.items()}, {k: torch.stack(v) for k, v in theirs.items()})


def test_command_of_the_benchmark(tmp_path, capsys):
    threads = torch.get_num_threads()
    assert benchmark.main(["--images", "2", "--rounds", "1", "--slow-images", "1", "--out", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    assert "all widths 1..40" in capsys.readouterr().out
    ratios = json.loads((tmp_path / "trimap.json").read_text())["relative_to_all_widths"]
    assert min(ratios[name] for name in ratios if "dilations" in name) > 10


def test_recorded_benchmark_holds_the_promise():
    recorded = json.loads((ROOT / "results" / "bench" / "trimap.json").read_text())
    ratios = recorded["relative_to_all_widths"]
    assert recorded["about"]["data"] == "CamVid val" and recorded["about"]["images"] == 101
    assert ratios["one width, 1"] >= .5 and ratios["one width, 40"] >= .5
    assert min(ratios[name] for name in ratios if "dilations" in name) >= 10


def test_a_collection_keeps_metrics_of_other_settings_apart():
    prediction, label = torch.randint(3, (2, 12, 12)), torch.randint(3, (2, 12, 12)) # no void: all count alike
    for make, asked in ((TrimapIoU, dict(max_width=5, void="label")), (MeanIoU, dict(ignore_index=254)),
                        (BoundaryIoU, dict(ratio=.021)), (Structure, dict(small=19))):
        same = dict(max_width=5) if make is TrimapIoU else {}
        pair = MetricCollection(dict(a=make(3, **same), b=make(3, **same | asked)))
        pair.update(prediction, label.masked_fill(label == 1, 0))
        assert len(pair.compute_groups) == 2
    alike = MetricCollection(dict(a=TrimapIoU(3, max_width=5), b=TrimapIoU(3, max_width=5)))
    alike.update(prediction, label)
    assert len(alike.compute_groups) == 1


@pytest.mark.parametrize("one, other", [
    (lambda: MeanIoU(2), lambda: MeanIoU(1)), (lambda: BoundaryIoU(2, width=1), lambda: BoundaryIoU(2, width=7)),
    (lambda: MeanIoU(2), lambda: BoundaryIoU(2)), (lambda: TrimapIoU(2), lambda: TrimapIoU(2, void="label"))])
def test_counts_of_other_settings_are_not_added(one, other):
    metric, added = one(), other()
    with pytest.raises(InputError, match="has other settings; expected those of the"):
        metric.add(added)
    metric.add(one())


def test_classes_of_more_pixels_than_32_bits_hold_are_there():
    metric = TrimapIoU(2, max_width=2)
    metric.counts[2, 0, 0], metric.counts[2, 1, 1] = 2**31, 5
    metric._update_count = 1
    assert metric.compute()["non_boundary_classes"].tolist() == [2, 2]


@pytest.mark.parametrize("kind", [MeanIoU, TrimapIoU, BoundaryIoU])
def test_masks_that_are_turned_views(kind):
    label, prediction = torch.randint(3, (2, 9, 6))
    found = [kind(num_classes=3) for _ in range(2)]
    found[0].update(prediction.T, label.T)
    found[1].update(prediction.T.contiguous(), label.T.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found[0].metric_state.values(), found[1].metric_state.values()))


def test_settings_that_no_metric_takes_are_refused():
    with pytest.raises(InputError, match="unknown setting 'maxwidth'; choose from .*max_width"):
        build_metrics(num_classes=3, maxwidth=5)
    with pytest.raises(InputError, match="a has 1 numbers, b 3; expected one for each image"):
        paired_mean([1.], [1., 2., 3.])
    with pytest.raises(InputError, match="a has 0 numbers, resamples is 2000; expected at least 1 of both"):
        paired_mean([], [])
    with pytest.raises(InputError, match="a has 1 numbers, resamples is 0; expected at least 1 of both"):
        paired_mean([1.], [2.], resamples=0)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_masks_are_counted(dtype):
    prediction, label = torch.randint(3, (2, 9, 9)), torch.randint(3, (2, 9, 9))
    label[0, 0] = 255
    expected = trimap_counts(prediction, label, 3, 5)
    assert torch.equal(trimap_counts(prediction.to(dtype), label.to(dtype), 3, 5), expected)


@pytest.mark.parametrize("build", [MeanIoU, TrimapIoU, BoundaryIoU, Structure])
def test_metrics_refuse_a_void_among_the_classes(build):
    with pytest.raises(InputError, match="ignore_index is 2, one of the 3 classes; expected None, or a number above"):
        build(3, ignore_index=2)
    for void in (3, 255, None, -100):
        build(3, ignore_index=void)
