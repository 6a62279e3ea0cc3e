import warnings

import pytest
import torch
import torch.nn.functional as F

from semeda.core import InputError
from semeda.edge_net import EdgeNet, one_hot
from semeda.edges import edge_map
from semeda.losses import (
    PPCELoss,
    PPCEOnEdgesLoss,
    SemedaLoss,
    UbernetLoss,
    ppce,
    ppce_on_edges,
    semeda,
    semeda_by_image,
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return EdgeNet(4)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (2, 9, 7), generator=g)
    labels[torch.rand(labels.shape, generator=g) < .2] = 255
    return torch.randn(2, 4, 9, 7, generator=g), labels


def by_pixel(logits, labels, net, lambdas, relu, norm, reduction):
    "Eq. 6 as a loop over pixels and channels, after zeroing void"
    masks = [one_hot(labels, 4), logits.softmax(1) * (labels != 255).unsqueeze(1)]
    psis = []
    for mask in masks:
        psi1 = net.conv1(mask)
        psi2 = net.conv2(psi1.relu())
        psis.append([psi1, psi2, net.conv3(psi2.relu())])
    total = 0.
    for l, weight in enumerate(lambdas):
        a, b = psis[1][l], psis[0][l]
        if relu == "after" and l < 2:
            a, b = a.relu(), b.relu()
        value = size = 0.
        of_class = {}
        for n, i, j in (labels != 255).nonzero().tolist():
            for c in range(a.shape[1]):
                d, e = (a[n, c, i, j] - b[n, c, i, j]).item(), b[n, c, i, j].item()
                value += abs(d) if norm == "l1" else d * d
                size += abs(e) if norm == "l1" else e * e
                sums = of_class.setdefault(labels[n, i, j].item(), [0., 0.])
                for k, x in enumerate((d, e)): sums[k] += abs(x) if norm == "l1" else x * x
        pixels = (labels != 255).sum().item()
        if reduction == "per_class":
            total += weight * sum(d / e for d, e in of_class.values()) / len(of_class)
            continue
        total += weight * value / dict(channel_sum=pixels, channel_mean=pixels * a.shape[1], relative=size)[reduction]
    return total


@pytest.mark.parametrize("lambdas", [(0., 1., 0.), (1., 0., 0.), (0., 0., 1.), (.25, .5, 1.)])
@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize(
    "norm, reduction",
    [("l1", "channel_mean"), ("l1", "channel_sum"), ("l2", "channel_mean"), ("l1", "relative"), ("l2", "relative"),
     ("l1", "per_class"), ("l2", "per_class")],
)
def test_semeda_is_eq_6(net, batch, lambdas, relu, norm, reduction):
    logits, labels = batch
    ours = semeda(logits, labels, net.weights, lambdas, relu, norm, reduction).item()
    assert ours == pytest.approx(by_pixel(logits, labels, net, lambdas, relu, norm, reduction), rel=1e-4)


def test_ppce_is_torch(batch):
    logits, labels = batch
    assert torch.allclose(ppce(logits, labels), F.cross_entropy(logits, labels, ignore_index=255))


@pytest.mark.parametrize("lambdas", [(1., 0., 0.), (0., 1., 0.), (.25, .5, 1.)])
@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize(
    "norm, reduction",
    [("l1", "channel_mean"), ("l2", "channel_mean"), ("l1", "relative"), ("l2", "relative"), ("l1", "per_class"),
     ("l2", "per_class")],
)
def test_gradients(net, batch, lambdas, relu, norm, reduction):
    logits, labels = batch[0][:1, :, :4, :4].double().requires_grad_(), batch[1][:1, :4, :4]
    weights = [(k.detach(), b.detach()) for k, b in net.double().weights]
    assert torch.autograd.gradcheck(lambda z: semeda(z, labels, weights, lambdas, relu, norm, reduction), logits)
    assert torch.autograd.gradcheck(lambda z: ppce(z, labels), logits)


@pytest.mark.parametrize("lambdas", [(0., 1., 0.), (1., 0., 0.), (0., 0., 1.), (.25, .5, 1.), (0., 0., 0.)])
@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize(
    "norm, reduction",
    [("l1", "channel_mean"), ("l1", "channel_sum"), ("l2", "channel_mean"), ("l1", "relative"), ("l2", "relative"),
     ("l1", "per_class"), ("l2", "per_class")],
)
@pytest.mark.parametrize("dtype, ignore", [(torch.long, 255), (torch.uint8, 255), (torch.int32, -1), (torch.uint8, 2)])
def test_by_image_equals_eq_6(net, batch, lambdas, relu, norm, reduction, dtype, ignore):
    logits, labels = batch
    labels = labels.masked_fill(labels == 255, ignore).to(dtype)
    labels[1] = ignore # an image of void alone
    args = labels, net.weights, lambdas, relu, norm, reduction, ignore
    slow, fast = (logits.clone().requires_grad_() for _ in range(2))
    expected, found = semeda(slow, *args), semeda_by_image(fast, *args)
    (3 * expected).backward()
    (3 * found).backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        assert semeda_by_image(logits, *args).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    half = logits.bfloat16().requires_grad_()
    semeda_by_image(half, *args).backward()
    assert half.grad.dtype == torch.bfloat16 and torch.isfinite(half.grad).all()


@pytest.mark.parametrize(
    "shape, lambdas, relu, norm, reduction",
    [  # images one by one and some at a time, more rows than a strip
        ((2, 4, 130, 510), (0.0, 1.0, 0.0), "before", "l1", "channel_mean"),
        ((5, 4, 70, 400), (1.0, 0.5, 0.25), "after", "l2", "relative"),
    ],
)
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_by_image_equals_eq_6_in_parts(shape, lambdas, relu, norm, reduction, device):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (shape[0], *shape[2:]), generator=generator)
    labels[0, 60:] = 255
    labels, weights = (
        labels.to(device),
        [(k.detach().double().to(device), b.detach().double().to(device)) for k, b in EdgeNet(4).weights],
    )
    logits = [
        torch.randn(shape, generator=generator.manual_seed(1), dtype=torch.double).to(device).requires_grad_()
        for _ in range(2)
    ]
    values = [f(x, labels, weights, lambdas, relu, norm, reduction) for f, x in zip((semeda, semeda_by_image), logits)]
    gradients = [torch.autograd.grad(value, x)[0] for value, x in zip(values, logits)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    assert (gradients[0] - gradients[1]).norm() <= 1e-12 * gradients[0].norm()


def test_by_image_is_differentiable_once(net, batch):
    logits = batch[0].requires_grad_()
    gradient, = torch.autograd.grad(semeda_by_image(logits, batch[1], net.weights), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


def test_ppce_on_edges_is_eq_5(net, batch):
    logits, labels = batch
    known = (labels != 255).unsqueeze(1)
    truth = edge_map(labels).long()
    direct = F.nll_loss(net(logits.softmax(1) * known).log(), truth, ignore_index=255)
    assert torch.allclose(ppce_on_edges(logits, labels, net.weights), direct, rtol=1e-4)
    loss = PPCEOnEdgesLoss(net, lambda1=5.)
    assert torch.allclose(loss(logits, labels), ppce(logits, labels) + 5 * direct, rtol=1e-4)
    changed = torch.where(known, logits, torch.randn_like(logits))
    assert torch.equal(loss(changed, labels), loss(logits, labels))
    assert not list(loss.parameters())


def test_ubernet_is_eq_5(batch):
    logits, labels = batch
    edges = torch.randn(2, 2, 9, 7)
    expected = ppce(logits, labels) + .5 * F.cross_entropy(edges, edge_map(labels).long(), ignore_index=255)
    assert torch.allclose(UbernetLoss(.5)((logits, edges), labels), expected)


def test_channels_last_and_compile(net, batch):
    logits, labels = batch
    loss = SemedaLoss(net)
    expected = loss(logits, labels)
    assert torch.allclose(loss(logits.contiguous(memory_format=torch.channels_last), labels), expected)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(logits, labels), expected)


def test_checkpointing_and_accumulation(net, batch):
    from torch.utils.checkpoint import checkpoint
    logits, labels = batch
    grads = []
    for f in (
        lambda z: SemedaLoss(net)(z, labels),
        lambda z: checkpoint(SemedaLoss(net), z, labels, use_reentrant=False),
    ):
        z = logits.clone().requires_grad_()
        for _ in range(2):
            f(z).backward()
        grads.append(z.grad)
    assert torch.allclose(*grads)


def test_zero_for_the_label_itself(net, batch):
    labels = batch[1]
    assert semeda(1e4 * one_hot(labels, 4), labels, net.weights, (1., 1., 1.)).item() == 0
    assert semeda_by_image(1e4 * one_hot(labels, 4), labels, net.weights, (1., 1., 1.)).item() < 1e-6


def test_void_hides_what_is_below(net, batch):
    logits, labels = batch
    loss = SemedaLoss(net)
    changed = torch.where((labels == 255).unsqueeze(1), torch.randn_like(logits), logits)
    assert torch.equal(loss(logits, labels), loss(changed, labels))


def test_nothing_labelled(net, batch):
    for loss in (PPCELoss(), SemedaLoss(net), PPCEOnEdgesLoss(net), lambda z, y: UbernetLoss()((z, z[:, :2]), y)):
        logits = batch[0].clone().requires_grad_()
        value = loss(logits, torch.full_like(batch[1], 255))
        value.backward()
        assert value.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_low_precision(net, batch, dtype, bound):
    logits, labels = batch
    loss = SemedaLoss(net)
    exact = loss(logits, labels).item()
    assert loss(logits.to(dtype), labels).item() == pytest.approx(exact, rel=bound)
    with torch.autocast("cpu", dtype):
        assert loss(logits, labels).item() == pytest.approx(exact, rel=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits(net, batch, dtype):
    logits = (batch[0].sign() * 1e4).to(dtype).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = SemedaLoss(net, lambdas=(1, 1, 1))(logits, batch[1])
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_the_edge_net_stays_frozen(net, batch):
    loss = SemedaLoss(net)
    before = [t.clone() for pair in loss.weights for t in pair]
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), loss)
    model.train().requires_grad_(True).to(torch.float32)
    assert not list(loss.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    loss(model[0](torch.randn(2, 3, 9, 7)), batch[1]).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, [t for pair in loss.weights for t in pair]))
    assert all(p.grad is None for p in net.parameters())


def test_terms_add_up(net, batch):
    loss = SemedaLoss(net)
    total = loss(*batch)
    assert torch.allclose(total, loss.terms["ppce"] + loss.terms["semeda"])


def test_warns_of_a_swamping_weight(net, batch):
    with pytest.warns(UserWarning, match="times PPCE"):
        SemedaLoss(net, lambdas=(0, 1e4, 0))(*batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SemedaLoss(net)(*batch)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda net: SemedaLoss(), "SemedaLoss got no edge net"),
        (lambda net: SemedaLoss(net, lambdas=(1, 2)), "lambdas is (1.0, 2.0); expected three weights"),
        (lambda net: SemedaLoss(net, norm="l3"), "norm is 'l3'; expected one of l1, l2"),
        (
            lambda net: SemedaLoss(net)(torch.zeros(1, 5, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)),
            "logits have 5 classes; expected 4",
        ),
    ],
)
def test_bad_input(net, call, words):
    with pytest.raises(InputError) as e:
        call(net)
    assert words in str(e.value)


def test_edge_heads_have_two_channels(batch):
    logits, labels = batch
    with pytest.raises(InputError, match=f"edge logits have {logits.shape[1]} channels; expected 2"):
        UbernetLoss()((logits, logits), labels)


@pytest.mark.parametrize("given, words", [
    (dict(edge_net="VOC"), "edge_net is 'VOC'; expected one of voc, cityscapes, camvid, .*or a file"),
    (dict(edge_net=21), "edge_net is 21; expected one of voc, .*a file, or an EdgeNet"),
    (dict(edge_net="camvid", masks=[torch.zeros(4, 4, dtype=torch.long)]), "masks are given beside edge_net 'camvid'"),
    (dict(num_classes=0), "num_classes is 0; expected 2..65535"),
    (dict(num_classes=2.5), "num_classes is 2.5; expected a whole number"),
])
def test_edge_nets_that_are_none(given, words):
    with pytest.raises(InputError, match=words):
        SemedaLoss(**given)
