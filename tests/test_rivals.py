"Other people's losses against brute force, and all registered losses at their limits."
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semeda.boundary_losses import (
    EIGHT,
    SignedDistanceLoss,
    active_boundary,
    boundary_dou,
    boundary_f1,
    boundary_iou_loss,
    euclidean_distance,
    predicted_boundary,
    signed_distance,
)
from semeda.boundary_losses import _distance_by_rows as distance_in_torch
from semeda.core import InputError
from semeda.edge_iou import edge_iou
from semeda.edge_net import EdgeNet
from semeda.loss_registry import LOSSES, advance_loss, build_loss
from semeda.losses import PPCELoss, SemedaLoss, ppce
from semeda.rivals import (
    PEERS,
    EdgeWeightedLoss,
    PeerLoss,
    TrimapLovaszLoss,
    _descending,
    _jaccard_steps,
    lovasz,
    region_mutual_information,
    trimap_lovasz,
)

NO_SMP = "segmentation-models-pytorch is not installed: pip install 'semeda[peers]'"
NAMES = [name for name in LOSSES if name not in ("ubernet", "ppce_edges")]


def make_batch(shape=(2, 4, 9, 7), void=.2, seed=1):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(shape[1], (shape[0], (shape[2] + 1) // 2, (shape[3] + 1) // 2), generator=g)
    labels = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :shape[2], :shape[3]].contiguous()
    labels[torch.rand(labels.shape, generator=g) < void] = 255
    return torch.randn(shape, generator=g), labels


@pytest.fixture
def batch():
    return make_batch()


def build(name, classes=4, **settings):
    if name.startswith("smp."):
        pytest.importorskip("segmentation_models_pytorch", reason=NO_SMP)
    torch.manual_seed(0)
    return build_loss(name, edge_net=EdgeNet(classes), num_classes=classes, **settings)


def arrays(logits, labels):
    p = logits.softmax(1).double().numpy()
    y = np.stack([(labels == c).numpy() for c in range(logits.shape[1])], axis=1).astype(float)
    return p, y, (labels != 255).numpy()


def window(values, known, i, j, radius, of, start):
    "`of` the known values around a pixel"
    found = start
    for a in range(max(0, i - radius), min(known.shape[0], i + radius + 1)):
        for b in range(max(0, j - radius), min(known.shape[1], j + radius + 1)):
            if known[a, b]:
                found = of(found, values[a, b])
    return found


def filtered(values, known, radius, of, start):
    return np.array(
        [
            [window(values, known, i, j, radius, of, start) if known[i, j] else 0.0 for j in range(known.shape[1])]
            for i in range(known.shape[0])
        ]
    )


def by_loop_boundary_iou(logits, labels, d=1, void="ignore"):
    p, y, known = arrays(logits, labels)
    ious = []
    for side in (0, 1):
        for c in range(p.shape[1]):
            both = either = label = 0.
            for n in range(len(p)):
                bands = []
                for m in (p[n, c], y[n, c]):
                    m = np.where(known[n], 1 - m if side else m, side) # as if void were one more label
                    seen = known[n] if void == "ignore" else np.ones_like(known[n])
                    bands.append(np.where(known[n], m - filtered(m, seen, d, min, 1.), 0))
                both, either, label = (
                    both + np.minimum(*bands).sum(),
                    either + np.maximum(*bands).sum(),
                    label + bands[1].sum(),
                )
            if label > 0:
                ious.append(both / either)
    return 1 - np.mean(ious)


def by_loop_boundary_f1(logits, labels, void="ignore"):
    p, y, known = arrays(logits, labels)
    losses = []
    for n in range(len(p)):
        for c in range(p.shape[1]):
            seen = known[n] if void == "ignore" else np.ones_like(known[n])
            found, true = (
                np.where(known[n], filtered(np.where(known[n], 1 - m, 1), seen, 1, max, 0.0) - (1 - m), 0)
                for m in (p[n, c], y[n, c])
            )
            if true.sum() == 0:
                continue
            everywhere = np.ones_like(known[n])
            near_true, near_found = (filtered(m, everywhere, 2, max, 0.) for m in (true, found))
            precision, recall = (found * near_true).sum() / found.sum(), (true * near_found).sum() / true.sum()
            losses.append(1 - 2 * precision * recall / (precision + recall))
    return np.mean(losses)


def by_loop_boundary_dou(logits, labels):
    p, y, known = arrays(logits, labels)
    losses = []
    for c in range(p.shape[1]):
        size, boundary, both, of_p = y[:, c].sum(), 0, 0., 0.
        for n, i, j in np.argwhere(known):
            both, of_p = both + p[n, c, i, j] * y[n, c, i, j], of_p + p[n, c, i, j]**2
            sides = [
                (i + a, j + b)
                for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
                if 0 <= i + a < known.shape[1] and 0 <= j + b < known.shape[2]
            ]
            boundary += y[n, c, i, j] and any(known[n, a, b] and not y[n, c, a, b] for a, b in sides)
        if size:
            alpha = min(.8, max(0, 1 - 2 * boundary / size))
            losses.append((of_p + size - 2 * both) / (of_p + size - (1 + alpha) * both))
    return np.mean(losses)


def nearest(points, i, j):
    return min((math.dist((i, j), q) for q in points), default=math.inf)


def by_loop_signed_distance(logits, labels):
    p, y, known = arrays(logits, labels)
    total = 0.
    for n in range(len(p)):
        for c in range(p.shape[1]):
            inside, outside = (np.argwhere(known[n] & (y[n, c] == v)).tolist() for v in (1, 0))
            for i, j in np.argwhere(known[n]):
                phi = 1 - nearest(outside, i, j) if y[n, c, i, j] else nearest(inside, i, j)
                total += phi * p[n, c, i, j] if math.isfinite(phi) else 0
    return total / known.sum() / p.shape[1]


def by_loop_active_boundary(logits, labels, share=.2, theta=2., smoothing=.2, void="ignore"):
    p, y, known = arrays(logits, labels)
    losses = []
    for n in range(len(p)):
        height, width = known[n].shape
        inside = lambda i, j, n=n, h=height, w=width: 0 <= i < h and 0 <= j < w and known[n, i, j]
        kl = lambda a, b, n=n: (p[n, :, a[0], a[1]] * np.log(p[n, :, a[0], a[1]] / p[n, :, b[0], b[1]])).sum()
        in_image = lambda i, j, h=height, w=width: 0 <= i < h and 0 <= j < w
        counts = inside if void == "ignore" else in_image
        edges = [
            (i, j)
            for i, j in np.argwhere(known[n] if void == "ignore" else np.ones_like(known[n]))
            if any(counts(i + a, j + b) and labels[n, i, j] != labels[n, i + a, j + b] for a, b in EIGHT)
        ]
        scores = {
            (i, j): max([kl((i, j), q) for q in ((i, j + 1), (i + 1, j)) if inside(i, j) and inside(*q)], default=0.0)
            for i in range(height)
            for j in range(width)
        }
        limit = sorted(scores.values(), reverse=True)[int(share * height * width)]
        for i, j in [q for q, score in scores.items() if score > limit and edges]:
            around = [(i + a, j + b) for a, b in EIGHT if inside(i + a, j + b)]
            near = [nearest(edges, *q) for q in around]
            exps = np.exp([kl((i, j), q) for q in around])
            target = np.full(len(around), smoothing / max(1, len(around) - 1))
            target[int(np.argmin(near))] = 1 - smoothing
            losses.append(min(nearest(edges, i, j), theta) / theta * -(target * np.log(exps / exps.sum())).sum())
    return np.mean(losses)


def by_loop_rmi(logits, labels):
    p, y, known = arrays(logits, labels)
    total = 0.
    for n in range(len(p)):
        for c in range(p.shape[1]):
            pooled = [
                np.array(
                    [
                        [(m * known[n])[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].mean() for j in range(m.shape[1] // 3)]
                        for i in range(m.shape[0] // 3)
                    ]
                )
                for m in (p[n, c], y[n, c])
            ]
            vectors = [
                np.array(
                    [m[i : i + 3, j : j + 3].ravel() for i in range(m.shape[0] - 2) for j in range(m.shape[1] - 2)]
                ).T
                for m in pooled
            ]
            a, b = (v - v.mean(axis=1, keepdims=True) for v in vectors)
            ridge = 1e-3 * np.eye(9)
            m = b @ b.T - b @ a.T @ np.linalg.inv(a @ a.T + ridge) @ a @ b.T + ridge
            total += np.log(np.linalg.det(m)) / 2 / 9 / len(p)
    return total


def by_loop_lovasz(logits, labels):
    p, y, known = arrays(logits, labels)
    losses = []
    for c in range(p.shape[1]):
        truth, found = y[:, c][known], p[:, c][known]
        if truth.sum():
            order = np.argsort(-abs(truth - found), kind="stable")
            jaccard = [
                1 - (truth.sum() - truth[order[: k + 1]].sum()) / (truth.sum() + (1 - truth[order[: k + 1]]).sum())
                for k in range(len(order))
            ]
            losses.append((abs(truth - found)[order] * np.diff([0, *jaccard])).sum())
    return np.mean(losses)


def by_loop_trimap_lovasz(logits, labels, width=2, void="ignore"):
    "Lovász of the pixels fewer than `width` from one that has a labelled neighbour of another class, or a void one"
    edge, band = torch.zeros(labels.shape, dtype=torch.bool), torch.zeros(labels.shape, dtype=torch.bool)
    height, columns = labels.shape[1:]
    around = lambda i, j, r: [(a, b) for a in range(max(0, i - r), min(height, i + r + 1))
                              for b in range(max(0, j - r), min(columns, j + r + 1))]
    for n, i, j in ((labels != 255) | (void == "label")).nonzero().tolist():
        none = (255, labels[n, i, j]) if void == "ignore" else (labels[n, i, j],)
        edge[n, i, j] = any(labels[n, a, b] not in none for a, b in around(i, j, 1))
    for n, i, j in (labels != 255).nonzero().tolist():
        band[n, i, j] = any(edge[n, a, b] for a, b in around(i, j, width - 1))
    return by_loop_lovasz(logits, labels.masked_fill(~band, 255))


def near_boundaries(logits, labels):
    return trimap_lovasz(logits, labels, width=2)


def near_boundaries_and_void(logits, labels):
    return trimap_lovasz(logits, labels, width=2, void="label")


def by_loop_with_void(logits, labels):
    return by_loop_trimap_lovasz(logits, labels, void="label")


def active(logits, labels):
    return active_boundary(logits, labels, share=.2, theta=2.)


def active_at_void(logits, labels):
    return active_boundary(logits, labels, share=.2, theta=2., void="label")


def boundary_iou_at_void(logits, labels):
    return boundary_iou_loss(logits, labels, void="label")


def boundary_f1_at_void(logits, labels):
    return boundary_f1(logits, labels, void="label")


DEFINED = [
    (boundary_iou_loss, by_loop_boundary_iou),
    (boundary_f1, by_loop_boundary_f1),
    (boundary_dou, by_loop_boundary_dou),
    (signed_distance, by_loop_signed_distance),
    (active, by_loop_active_boundary),
    (region_mutual_information, by_loop_rmi),
    (lovasz, by_loop_lovasz),
    (near_boundaries, by_loop_trimap_lovasz),
    (near_boundaries_and_void, by_loop_with_void),
    (boundary_iou_at_void, partial(by_loop_boundary_iou, void="label")),
    (boundary_f1_at_void, partial(by_loop_boundary_f1, void="label")),
    (active_at_void, partial(by_loop_active_boundary, void="label")),
]


@pytest.mark.parametrize("loss, by_loop", DEFINED, ids=[f.__name__ for f, _ in DEFINED])
@pytest.mark.parametrize("shape", [(2, 4, 12, 11), (1, 2, 10, 13), (1, 30, 9, 9)])
def test_equals_its_definition(loss, by_loop, shape):
    logits, labels = make_batch(shape)
    assert loss(2 * logits, labels).item() == pytest.approx(by_loop(2 * logits.double(), labels), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", [f for f, _ in DEFINED], ids=[f.__name__ for f, _ in DEFINED])
def test_gradient(loss):
    logits, labels = make_batch((1, 3, 9, 10))
    if loss in (active, active_at_void): # a finite difference sees the neighbours too
        void = "label" if loss is active_at_void else "ignore"
        loss = partial(active_boundary, share=.2, theta=2., detach=False, void=void)
    assert torch.autograd.gradcheck(
        lambda z: loss(z, labels), (2 * logits.double()).requires_grad_(), eps=1e-7, atol=1e-4, fast_mode=True
    )


def test_gradient_of_active_boundary_leaves_neighbours_alone():
    logits, labels = make_batch((1, 3, 8, 9))
    logits = logits.double().requires_grad_()
    active(logits, labels).backward()
    moved = (logits.grad[0].abs().sum(0) > 0).sum()
    assert 0 < moved <= int(.2 * 72)


@pytest.mark.parametrize("name", NAMES)
def test_limits(name, batch):
    logits, labels = batch
    loss = build(name)
    assert not list(loss.parameters()) and isinstance(repr(loss), str)
    z = logits.clone().requires_grad_()
    value = loss(z, labels)
    value.backward()
    assert (
        value.isfinite()
        and z.grad.isfinite().all()
        and set(loss.terms) == set(dict.fromkeys(("ppce", *LOSSES[name].terms)))
    )
    if name not in ("signed_distance", "edge_weighted"):
        assert torch.allclose(sum(loss.terms.values()), value, rtol=1e-5)
    assert (z.grad * (labels == 255)[:, None]).abs().max() == 0 # void moves nothing
    other = torch.where((labels == 255)[:, None], torch.full_like(logits, 7.), logits)
    assert torch.allclose(loss(other, labels), value, rtol=1e-5) # and is not seen
    again = pickle.loads(pickle.dumps(loss))
    assert torch.equal(again(logits, labels), loss(logits, labels))
    assert torch.allclose(loss(logits, labels.to(torch.uint8)), value, rtol=1e-6)
    other_void = build(name, ignore_index=-1)(logits, labels.masked_fill(labels == 255, -1))
    assert torch.allclose(other_void, value, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_labelled_and_tiny_images(name, batch):
    loss = build(name)
    for shape in ((2, 4, 9, 7), (1, 4, 1, 1)):
        z = make_batch(shape)[0].requires_grad_()
        nothing = loss(z, torch.full((shape[0], *shape[2:]), 255))
        nothing.backward()
        assert nothing.item() == 0 and (z.grad is None or (z.grad == 0).all())
    z = torch.randn(1, 4, 1, 1, requires_grad=True)
    one = loss(z, torch.zeros(1, 1, 1, dtype=torch.long))
    one.backward()
    assert one.isfinite() and z.grad.isfinite().all()
    flat = loss(batch[0], torch.ones_like(batch[1])) # a single class
    assert flat.isfinite()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 150])
def test_few_and_many_classes(name, classes):
    logits, labels = make_batch((2, classes, 12, 10))
    z = logits.requires_grad_()
    value = build(name, classes)(z, labels)
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_extreme_logits(name, dtype, batch):
    logits, labels = batch
    loss = build(name)
    exact = loss(logits.to(dtype).float(), labels)
    assert torch.allclose(loss(logits.to(dtype), labels).float(), exact, rtol=1e-3, atol=1e-5)
    z = (logits.sign() * 1e4).to(dtype).requires_grad_()
    value = loss(z, labels)
    value.backward()
    assert value.isfinite() and z.grad.dtype == dtype and z.grad.isfinite().all()


def test_contours_of_void_are_boundaries_where_they_are_labels():
    "As on VOC, where no two classes touch"
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    labels[:, 6:18, 6:18] = 255
    labels[:, 8:16, 8:16] = 1
    logits = torch.zeros(1, 2, 24, 24, requires_grad=True)
    assert TrimapLovaszLoss().compute(logits, labels) == 0
    loss = TrimapLovaszLoss(void="label", width=2)
    loss.compute(logits, labels).backward()
    near = torch.zeros(24, 24, dtype=torch.bool)
    near[4:20, 4:20], near[6:18, 6:18], near[8:16, 8:16], near[10:14, 10:14] = True, False, True, False
    assert torch.equal((logits.grad[0] != 0).any(dim=0), near) and "void='label'" in repr(loss)
    assert build_loss("trimap_lovasz(void='label')").void == "label"
    with pytest.raises(InputError, match="void is 'labels'; "):
        TrimapLovaszLoss(void="labels")
    with pytest.raises(InputError, match="void is 'labels'; "):
        trimap_lovasz(logits, labels, void="labels")


@pytest.mark.parametrize("name", ["boundary_iou", "boundary_f1", "active_boundary"])
def test_a_class_ends_at_a_contour_of_void_where_it_is_a_label(name):
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    labels[:, 6:18, 6:18] = 255
    labels[:, 8:16, 8:16] = 1
    logits = 2 * torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    assert build_loss(name).compute(logits, labels) == 0 # no two classes touch
    loss = build_loss(f"{name}(void='label')")
    assert loss.compute(logits, labels) > 0 and "void='label'" in repr(loss)
    with pytest.raises(InputError, match="void is 'labels'; "):
        build_loss(f"{name}(void='labels')")


@pytest.mark.parametrize("name", ["lovasz", "trimap_lovasz", "boundary_iou", "active_boundary"])
def test_compiled(name, batch):
    loss = build(name)
    compiled = torch.compile(loss, backend="eager")
    assert torch.allclose(compiled(*batch), loss(*batch), rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (6, 1), (40, 33)])
def test_distances(size, monkeypatch):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(3, *size, generator=g) < .1
    mask[0] = False
    distance = euclidean_distance(mask)
    assert torch.allclose(distance, distance_in_torch(mask), rtol=1e-6)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(distance, distance_in_torch(mask), rtol=1e-6)
    assert distance[0].isinf().all() and (distance[mask] == 0).all()
    for n, i, j in [(n, i, j) for n in (1, 2) for i in (0, size[0] // 2) for j in (0, size[1] - 1)]:
        assert distance[n, i, j].item() == pytest.approx(nearest(mask[n].nonzero().tolist(), i, j))


@pytest.mark.parametrize("size", [(4, 12), (12, 4), (8, 9)])
def test_region_mutual_information_of_images_smaller_than_a_window(size):
    logits = torch.randn(2, 3, *size, requires_grad=True)
    loss = region_mutual_information(logits, torch.ones(2, *size, dtype=torch.long))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_predicted_boundary_of_a_small_image_is_one_pixel():
    log_p = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).log_softmax(dim=1)
    pixels, found = predicted_boundary(log_p, torch.ones(1, 4, 5, dtype=torch.bool))
    assert found.sum() == 1 and found[0, 0]


def test_schedule(batch):
    term, base = signed_distance(*batch), ppce(*batch)
    loss = build("signed_distance+lovasz")
    for fraction, alpha in ((0, .01), (.5, .5), (1, .99)):
        advance_loss(loss, fraction)
        assert torch.allclose(loss.base(*batch), (1 - alpha) * base + alpha * term)
        assert loss.base.terms["signed_distance"] == pytest.approx((alpha * term).item(), rel=1e-5)
        assert loss.base.terms["ppce"] == pytest.approx(((1 - alpha) * base).item(), rel=1e-5)
    other = SignedDistanceLoss(2., schedule="increase")
    other.advance(.25)
    assert torch.allclose(other(*batch), base + .5 * term)
    constant = SignedDistanceLoss(schedule="constant")
    constant.advance(.25)
    assert torch.allclose(constant(*batch), base + term) and "alpha" not in constant.state_dict()


@pytest.mark.parametrize(
    "expression, words",
    [
        ("boundary_f1(side=2)", "side is 2; choose from"),
        ("boundary_iou(d=0)", "d is 0; expected 1..254"),
        ("boundary_iou(d=1.5)", "d is 1.5; expected a whole number 1..254"),
        ("lovasz(weight=-1)", "weight is -1; expected at least 0"),
        ("trimap_lovasz(width=0)", "width is 0; expected 1..254"),
        ("trimap_lovasz(width=255)", "width is 255; expected 1..254"),
        ("trimap_lovasz(width=2.7)", "width is 2.7; expected a whole number 1..254"),
        ("rmi(radius=0)", "radius is 0; expected 1..99"),
        ("rmi(stride=1.5)", "stride is 1.5; expected a whole number 1..99"),
        ("signed_distance(schedule='never')", "schedule is 'never'; choose from rebalance"),
        ("rmi(weight='x')", "weight is 'x'; expected a number"),
        ("active_boundary(theta=0)", "theta is 0; expected at least 1"),
    ],
)
def test_wrong_settings(expression, words):
    with pytest.raises(InputError) as e:
        build(expression)
    assert words in str(e.value)


@pytest.mark.parametrize("function, setting", [
    (boundary_iou_loss, dict(d=0)), (boundary_f1, dict(side=2)), (boundary_f1, dict(tolerance=0)),
    (trimap_lovasz, dict(width=0)), (region_mutual_information, dict(radius=0)), (edge_iou, dict(reaches=(0, 2))),
    (edge_iou, dict(reaches=())),
])
def test_wrong_settings_of_functions(batch, function, setting):
    "which would be a loss of 0, or an error of torch's, otherwise"
    (name, value), = setting.items()
    with pytest.raises(InputError) as e:
        function(*batch, **setting)
    assert f"{name} is {value!r}; " in str(e.value)


@pytest.mark.parametrize("shape, void", [((2, 4, 9, 7), .2), ((1, 3, 40, 50), 0.), ((3, 2, 16, 16), 1.)])
def test_lovasz_sorts_the_same_in_both_ways(shape, void):
    "by bits in single precision, by torch in double"
    logits, labels = make_batch(shape, void)
    logits[:, :, :4] = 0 # errors that are equal
    values, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        z = logits.to(dtype).requires_grad_()
        values.append(lovasz(z, labels))
        gradients.append(torch.autograd.grad(values[-1], z)[0])
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-6)
    distinct = (..., slice(4, None), slice(None)) # where they are equal, any order has a right gradient
    torch.testing.assert_close(gradients[0][distinct].double(), gradients[1][distinct], atol=1e-5, rtol=1e-3)


def test_order_of_errors():
    errors = torch.tensor([[.5, 0., 1., -1., 1e-40, .25], [-1.] * 6])
    order = _descending(errors)
    assert order[0].tolist() == [2, 0, 5, 4, 1, 3] and sorted(order[1].tolist()) == list(range(6))
    assert _descending(errors[:, :0]).shape == (2, 0) and _descending(errors[:0]).shape == (0, 6)


def test_lovasz_is_the_librarys(batch):
    pytest.importorskip("segmentation_models_pytorch", reason=NO_SMP)
    values, gradients = [], []
    for name in ("lovasz", "smp.LovaszLoss"):
        z = batch[0].clone().requires_grad_()
        values.append(build(name)(z, batch[1]))
        values[-1].backward()
        gradients.append(z.grad)
    assert torch.allclose(*values, rtol=1e-6) and torch.allclose(*gradients, atol=1e-7)


def test_edge_weighted_is_a_weighted_mean(batch):
    logits, labels = batch
    total = weights = 0.
    for n, i, j in (labels != 255).nonzero().tolist():
        around = labels[n, max(i - 1, 0):i + 2, max(j - 1, 0):j + 2]
        w = 3.5 if ((around != labels[n, i, j]) & (around != 255)).any() else 1.
        total, weights = total - w * logits[n, :, i, j].log_softmax(0)[labels[n, i, j]], weights + w
    assert EdgeWeightedLoss(2.5)(logits, labels).item() == pytest.approx((total / weights).item(), rel=1e-5)
    assert EdgeWeightedLoss(0.)(logits, labels).item() == pytest.approx(ppce(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", PEERS)
def test_peer_is_the_librarys_loss_added(name, batch):
    smp = pytest.importorskip("segmentation_models_pytorch", reason=NO_SMP)
    logits, labels = batch[0], batch[1] % 4
    theirs = getattr(smp.losses, name)("multiclass")(logits, labels)
    assert PeerLoss(name, 0.5)(logits, labels).item() == pytest.approx(
        (ppce(logits, labels) + 0.5 * theirs).item(), rel=1e-4
    )
    base = SemedaLoss(EdgeNet(4))
    loss = PeerLoss(name, 2., base)
    assert loss(logits, labels).item() == pytest.approx((base(logits, labels) + 2 * theirs).item(), rel=1e-4)
    assert set(loss.terms) == {"ppce", "semeda", "peer"}


def test_base_losses(batch):
    assert torch.equal(PPCELoss()(*batch), ppce(*batch)) and math.isclose(
        F.cross_entropy(*batch, ignore_index=255), ppce(*batch), rel_tol=1e-6
    )


@pytest.mark.parametrize("pixels", [2**12, 2**21])
def test_lovasz_steps_of_many_pixels(pixels):
    "In single precision as in double, however small they are"
    of_class = (torch.rand(2, pixels, generator=torch.Generator().manual_seed(0)) < .3).float()
    size = of_class.double().sum(dim=1, keepdim=True)
    passed = of_class.double().cumsum(dim=1)
    loss = 1 - (size - passed) / (size + torch.arange(1, pixels + 1) - passed)
    steps = torch.cat([loss[:, :1], loss.diff(dim=1)], dim=1)
    found = _jaccard_steps(of_class)
    assert ((found - steps).abs().sum(dim=1) < 1e-6).all()
    assert ((found > 0) == ((passed < size) | (of_class > 0))).all() # no pixel that counts has a step of 0


def test_boundary_f1_needs_a_window_that_finds_boundaries():
    for wrong in (1, 4, 3.5):
        with pytest.raises(InputError, match=f"side is {wrong}; "):
            build_loss(f"boundary_f1(side={wrong})")
    assert build_loss("boundary_f1(side=3.0, tolerance=1)").side == 3


def test_active_boundary_where_divergences_tie():
    "A disc beside its label, as sure everywhere: all of its boundary is alike"
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    disc = lambda column: ((rows - 20)**2 + (columns - column)**2 < 100).long()[None]
    logits = (4. * F.one_hot(disc(22), 2).movedim(-1, 1)).requires_grad_()
    loss = active_boundary(logits, disc(20))
    loss.backward()
    assert loss > 0 and logits.grad.abs().max() > 0


@pytest.mark.parametrize("ridge", [0, -1, float("nan")])
def test_ridges_that_invert_nothing(ridge):
    with pytest.raises(InputError, match="ridge is"):
        region_mutual_information(torch.randn(1, 3, 12, 12), torch.zeros(1, 12, 12, dtype=torch.long), ridge=ridge)


def test_distance_of_a_single_map():
    from scipy.ndimage import distance_transform_edt

    from semeda.boundary_losses import euclidean_distance
    mask = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) < .1
    expected = torch.from_numpy(distance_transform_edt(~mask.numpy())).float()
    assert torch.equal(euclidean_distance(mask), expected)
    assert torch.equal(euclidean_distance(mask.expand(2, 1, 9, 7)), expected.expand(2, 1, 9, 7))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16) # in which 399.5 would be 400
    try:
        assert torch.equal(euclidean_distance(mask), expected)
    finally:
        torch.set_default_dtype(usual)
