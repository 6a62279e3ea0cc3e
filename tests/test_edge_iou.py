from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semeda.core import InputError
from semeda.edge_iou import EdgeIoULoss, edge_iou, edge_iou_by_definition, offset_pairs, offsets
from semeda.loss_registry import build_loss


def brute_force(logits, labels, reaches, ignore_index=255, false_weight=1.):
    "Eq. 4 and 6, pair by pair: what prediction and label share, what each has alone"
    p = logits.softmax(dim=1).tolist()
    batch, classes, height, width = logits.shape
    total, count = 0., 0
    for reach in reaches:
        for c in range(classes):
            shared = of_label = false = missing = 0.
            for b in range(batch):
                for i in range(height):
                    for j in range(width):
                        for down, right in ((0, reach), (reach, 0), (reach, reach), (reach, -reach)):
                            k, m = i + down, j + right
                            if not (k < height and 0 <= m < width):
                                continue
                            first, second = int(labels[b, i, j]), int(labels[b, k, m])
                            if ignore_index in (first, second):
                                continue
                            d = p[b][c][i][j] - p[b][c][k][m]
                            e = (first == c) - (second == c)
                            both = min(abs(d), abs(e)) if d * e > 0 else 0.
                            shared += both
                            of_label += abs(e)
                            false += abs(d) - both
                            missing += abs(e) - both
            if of_label:
                total += shared / (shared + false_weight * false + missing)
                count += 1
    return 1 - total / count if count else 0.


def case(seed, shape, classes, void=.2):
    "Logits and labels in blocks, with void"
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], classes, *shape[1:], generator=rng, dtype=torch.double)
    labels = torch.randint(classes, shape, generator=rng)
    labels[torch.rand(shape, generator=rng) < void] = 255
    return 2 * logits, labels


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 2),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    classes=st.integers(2, 4),
    reaches=st.sampled_from([(1,), (2,), (1, 3), (2, 4, 8)]),
    void=st.sampled_from([0, 0.3]),
    false_weight=st.sampled_from([1., 0., 2.5]),
)
def test_equals_the_definition(seed, batch, height, width, classes, reaches, void, false_weight):
    logits, labels = case(seed, (batch, height, width), classes, void)
    expected = brute_force(logits, labels, reaches, false_weight=false_weight)
    for loss in (edge_iou, edge_iou_by_definition):
        assert loss(logits, labels, reaches, false_weight=false_weight).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("settings_of_loss", [{}, dict(false_weight=2.)])
def test_gradients(settings_of_loss):
    logits, labels = case(3, (2, 6, 7), 3)
    logits.requires_grad_()
    fast = partial(edge_iou, labels=labels, **settings_of_loss)
    by_definition = partial(edge_iou_by_definition, labels=labels, **settings_of_loss)
    assert torch.autograd.gradcheck(partial(fast, reaches=(1, 2)), logits)
    grads = [torch.autograd.grad(loss(logits), logits)[0] for loss in (fast, by_definition)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


def test_a_gradient_of_a_gradient_is_refused():
    logits, labels = case(0, (1, 5, 5), 3)
    logits.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(edge_iou(logits, labels), logits, create_graph=True)


@pytest.mark.parametrize("labels", [torch.full((1, 5, 6), 255), torch.full((1, 5, 6), 2), torch.zeros(1, 1, 1).long()])
def test_without_an_edge_it_is_0_with_a_gradient_of_0(labels):
    logits = torch.randn(1, 3, *labels.shape[1:], requires_grad=True)
    loss = edge_iou(logits, labels)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    logits = logits.detach().clone()
    logits[0, 1, 0, 0] = torch.nan
    assert edge_iou(logits, labels).isnan()


def test_a_void_pixel_does_not_matter():
    logits, labels = case(1, (1, 8, 8), 3)
    changed = torch.where(labels.unsqueeze(1) == 255, torch.randn_like(logits), logits)
    assert edge_iou(changed, labels).item() == pytest.approx(edge_iou(logits, labels).item(), abs=1e-12)
    other = labels.masked_fill(labels == 255, 7)
    assert edge_iou(logits, other, ignore_index=7).item() == edge_iou(logits, labels).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow(dtype):
    logits, labels = case(2, (1, 16, 16), 150, void=0)
    large = (1e4 * logits.sign()).to(dtype).requires_grad_()
    loss = edge_iou(large, labels)
    loss.backward()
    assert loss.isfinite() and large.grad.isfinite().all() and loss.dtype == torch.float32


def test_perfect_prediction_is_0_and_module_adds_up():
    _, labels = case(4, (2, 9, 9), 4, void=.1)
    right = 1e3 * torch.nn.functional.one_hot(labels.masked_fill(labels == 255, 0), 4).movedim(-1, 1).double()
    assert edge_iou(right, labels).item() == pytest.approx(0, abs=1e-12)
    loss = EdgeIoULoss(weight=3.)
    total = loss(right, labels)
    assert total.item() == pytest.approx(sum(loss.terms.values()).item()) and not list(loss.parameters())


def test_pairs_cover_each_direction_once():
    x = torch.arange(20).view(4, 5)
    for down, right in offsets(3):
        first, second = offset_pairs(x, down, right)
        assert first.numel() == (4 - down) * (5 - abs(right))
        assert ((second - first) == 5 * down + right).all()


def test_terms_of_its_own_and_of_another_base():
    logits, labels = case(0, (2, 6, 7), 3)
    loss = EdgeIoULoss()
    total = loss(logits, labels)
    assert list(loss.terms) == ["ppce", "edge_iou"] and total == pytest.approx(sum(loss.terms.values()).item())
    outer = EdgeIoULoss(weight=1., base=loss)
    total = outer(logits, labels)
    assert outer.terms["ppce"] == loss.terms["ppce"] and outer.terms["edge_iou_2"] == loss.terms["edge_iou"] / 2
    assert total == pytest.approx((1.5 * loss.terms["edge_iou"] + loss.terms["ppce"]).item())


@pytest.mark.parametrize("weight", [-1., float("nan"), "two"])
def test_a_weight_of_false_edges_that_is_none(weight):
    with pytest.raises(InputError, match="false_weight"):
        EdgeIoULoss(false_weight=weight)


def test_module_weighs_false_edges():
    logits, labels = case(1, (2, 9, 9), 3)
    for loss in (EdgeIoULoss(false_weight=3.), build_loss("edge_iou(false_weight=3)")):
        loss(logits, labels)
        assert loss.terms["edge_iou"].item() == pytest.approx(2 * edge_iou(logits, labels, false_weight=3.).item())
    assert edge_iou(logits, labels, false_weight=3.) > edge_iou(logits, labels)


@pytest.mark.parametrize("height, width, reaches", [(3, 40, (2, 30)), (40, 1, (1, 7)), (2, 3, (9,)), (1, 9, (2, 4, 8))])
def test_reaches_beyond_a_side(height, width, reaches):
    logits, labels = case(5, (2, height, width), 3)
    logits.requires_grad_()
    values = [loss(logits, labels, reaches) for loss in (edge_iou, edge_iou_by_definition)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values), rtol=1e-9, atol=1e-14)


def test_maps_that_are_taken_a_few_at_a_time():
    "Maps of 2**19 pixels go two at a time, so five classes come in three parts"
    logits, labels = case(2, (2, 64, 128), 5)
    logits = logits.repeat_interleave(8, 2).repeat_interleave(8, 3).requires_grad_()
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    values = [loss(logits, labels, (4,)) for loss in (edge_iou, edge_iou_by_definition)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values), rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("given, words", [
    (dict(reaches=(0,)), "reaches is"), (dict(reaches=()), "reaches is"), (dict(false_weight=-1), "false_weight is -1"),
])
def test_the_definition_refuses_what_the_loss_refuses(given, words):
    logits, labels = torch.randn(1, 3, 6, 6), torch.zeros(1, 6, 6, dtype=torch.long)
    for loss in (edge_iou, edge_iou_by_definition):
        with pytest.raises(InputError, match=words):
            loss(logits, labels, **given)
