"What goes into a loss: taken, or told in one line; Edge nets from masks, files and checkpoints."
import pickle
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from semeda.boundary_losses import active_boundary, boundary_dou, boundary_f1, boundary_iou_loss, signed_distance
from semeda.core import InputError
from semeda.edge_iou import edge_iou
from semeda.edge_net import EdgeNet, one_hot
from semeda.frozen_edge_net import FrozenEdgeNet, checked_masks
from semeda.loss_inputs import check_labels, checked
from semeda.loss_registry import LOSSES, build_loss, loss_terms
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
from semeda.rivals import lovasz, region_mutual_information, trimap_lovasz

NET = EdgeNet(4).requires_grad_(False)
FUNCTIONS = dict(
    ppce=ppce,
    ppce_on_edges=lambda z, y: ppce_on_edges(z, y, NET.weights),
    semeda=lambda z, y: semeda(z, y, NET.weights),
    semeda_by_image=lambda z, y: semeda_by_image(z, y, NET.weights),
    lovasz=lovasz,
    trimap_lovasz=trimap_lovasz,
    rmi=region_mutual_information,
    boundary_iou=boundary_iou_loss,
    boundary_f1=boundary_f1,
    boundary_dou=boundary_dou,
    signed_distance=signed_distance,
    active_boundary=active_boundary,
)
MODULES = [name for name in LOSSES if name != "ubernet" and not name.startswith("smp.")]


def build(name, **settings):
    if name.startswith("smp."):
        pytest.importorskip("segmentation_models_pytorch")
    return build_loss(name, edge_net=NET, num_classes=4, **settings)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 6, generator=g), torch.randint(4, (2, 8, 6), generator=g)


def with_label(value):
    labels = torch.zeros(2, 8, 6, dtype=torch.long)
    labels[0, 3, 3] = value
    return labels


Z, Y = torch.zeros(2, 4, 8, 6), torch.zeros(2, 8, 6, dtype=torch.long)
WRONG = [
    (Z, with_label(4), "labels contain 4; expected 0..3 or 255 (void)"),
    (Z, with_label(200), "labels contain 200"),
    (Z, with_label(-1), "labels contain -1"),
    (Z, with_label(-100), "labels contain -100"),
    (Z, with_label(2**40), "labels contain 1099511627776"),
    (Z[:1], Y, "expected the same number of images"),
    (Z, Y[:1], "expected the same number of images"),
    (
        Z[..., :3],
        Y,
        "logits are 8x3, labels 8x6; expected F.interpolate(logits, size=labels.shape[-2:], mode='bilinear', "
        "align_corners=False), or upsample=True",
    ),
    (Z, Y.float(), "labels are torch.float32; expected an integer dtype"),
    (Z, Y > 0, "labels are torch.bool"),
    (Z.long(), Y, "logits are torch.int64"),
    (Z[:, :1], Y, "expected a channel for each class, two or more"),
    (Z[0], Y, "expected (B, C, H, W) and (B, H, W)"),
    (Z, Y[0], "expected (B, C, H, W) and (B, H, W)"),
    (Z, Y.numpy(), "labels are a ndarray; expected an integer tensor"),
    ((Z, Z), Y, "logits are a tuple of 2; pass one of them"),
    (dict(sem_seg=Z), Y, "logits are a dict with sem_seg; expected a tensor"),
    (None, Y, "logits are a NoneType"),
]


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"module {name}" for name in MODULES)])
def test_what_is_wrong_is_told_in_one_line(name):
    loss = FUNCTIONS[name] if name in FUNCTIONS else build(name.removeprefix("module "))
    for logits, labels, words in WRONG:
        with pytest.raises(InputError) as e:
            loss(logits, labels)
        assert words in str(e.value) and "\n" not in str(e.value), (name, str(e.value))


@pytest.mark.parametrize("name", MODULES)
def test_what_is_taken(name, batch):
    logits, labels = batch
    loss = build(name)
    expected = loss(logits, labels)
    for other in (dict(out=logits, aux=None), SimpleNamespace(logits=logits, loss=None), dict(logits=logits)):
        assert torch.equal(loss(other, labels), expected)
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.int32):
        assert torch.allclose(loss(logits, labels.to(dtype)), expected, rtol=1e-6)
    assert torch.equal(loss(logits, labels[:, None]), expected)
    assert torch.equal(loss(logits[0], labels[0]), loss(logits[:1], labels[:1]))


def test_ubernet_takes_a_pair(batch):
    logits, labels = batch
    for bad in (logits, (logits,), dict(out=logits)):
        with pytest.raises(InputError, match="logits are no pair"):
            UbernetLoss()(bad, labels)
    with pytest.raises(InputError, match="labels contain 9"):
        UbernetLoss()((logits, logits[:, :2]), with_label(9))


def test_no_void(batch):
    logits, labels = batch
    for loss in (PPCELoss(None), SemedaLoss(NET, ignore_index=None), build("lovasz", ignore_index=None)):
        assert torch.isfinite(loss(logits, labels))
        for value in (255, -1):
            with pytest.raises(InputError, match=f"contain {value}; expected 0..3$"):
                loss(logits, with_label(value))
    with pytest.raises(InputError, match="contain 255"): # and -1 is not 255 in eight bits
        SemedaLoss(NET, ignore_index=-1)(logits, with_label(255).to(torch.uint8))


def test_upsample(batch):
    logits, labels = batch
    small = logits[..., ::2, ::2]
    large = F.interpolate(small, size=(8, 6), mode="bilinear", align_corners=False)
    for loss, direct in ((PPCELoss(upsample=True), PPCELoss()), (SemedaLoss(NET, upsample=True), SemedaLoss(NET))):
        assert torch.equal(loss(small, labels), direct(large, labels)) and "upsample=True" in repr(loss)


def test_the_check_is_cheap(monkeypatch):
    "Labels that are right are neither copied nor sorted: a byte a label for a comparison, of the eight that one has"
    labels = torch.randint(21, (2, 320, 320))
    labels[:, :20] = 255
    logits = torch.randn(2, 21, 320, 320)
    monkeypatch.setattr(np, "unique", lambda *given: pytest.fail("sorted"))
    tracemalloc.start()
    try:
        checked(logits, labels)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert labels.numel() <= most < 1.5 * labels.numel()


def test_check_labels_by_name():
    with pytest.raises(InputError, match="masks contain 7"):
        check_labels(with_label(7), 4, name="masks")


@pytest.mark.parametrize("kind", ["SemedaLoss", "semeda_by_image"])
def test_a_second_derivative_is_refused(kind, batch):
    logits, labels = batch[0].clone().requires_grad_(), batch[1]
    loss = SemedaLoss(NET, lambdas=(1, 1, 1)) if kind == "SemedaLoss" else FUNCTIONS[kind]
    gradient, = torch.autograd.grad(loss(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(gradient.sum(), logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


def test_eq_6_has_a_second_derivative(batch):
    logits = batch[0].double().requires_grad_()
    gradient, = torch.autograd.grad(semeda(logits, batch[1], NET.weights, norm="l2"), logits, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), logits)[0].abs().sum() > 0


def test_class_weights_and_label_smoothing(batch):
    logits, labels = batch[0], batch[1].masked_fill(torch.rand(2, 8, 6) < .2, 255)
    weight = torch.tensor([1., 2., 0., .5])
    theirs = F.cross_entropy(logits, labels, weight, ignore_index=255, label_smoothing=.1)
    assert torch.allclose(PPCELoss(weight=weight, label_smoothing=.1)(logits, labels), theirs)
    loss = SemedaLoss(NET, weight=[1., 2., 0., .5], label_smoothing=.1)
    loss(logits, labels)
    assert torch.allclose(loss.terms["ppce"], theirs) and torch.equal(loss.weight, weight)
    nothing = PPCELoss(weight=weight)(
        logits.requires_grad_(), torch.full_like(labels, 2)
    )  # of a class that does not count
    nothing.backward()
    assert nothing == 0 and (logits.grad == 0).all()
    assert "weight" not in PPCELoss().state_dict() and "weight" in loss.state_dict()
    for bad in ([1., float("nan"), 1., 1.], [-1., 1., 1., 1.], [[1.]]):
        with pytest.raises(InputError, match="expected a number of at least 0 for each class"):
            PPCELoss(weight=bad)
    for loss in (PPCELoss(weight=[1., 2.]), lambda *batch: ppce(*batch, weight=torch.ones(2))):
        with pytest.raises(InputError, match="weight has 2 numbers; expected 4, one for each class"):
            loss(logits, labels)
    for make in (lambda: SemedaLoss(NET, weight=[1.] * 5), lambda: PPCELoss(weight=[1.] * 5, num_classes=4),
                 lambda: build_loss("ppce(weight=(1, 1, 1, 1, 1))", num_classes=4)):
        with pytest.raises(InputError, match="weight has 5 numbers; expected 4, one for each class"):
            make()
    with pytest.raises(InputError, match="label_smoothing is 2"):
        SemedaLoss(NET, label_smoothing=2)


@pytest.mark.parametrize("lambdas", [(0, float("nan"), 0), (float("inf"), 0, 0), (0, -1, 0), (1, 2), (1, 2, 3, 4)])
def test_lambdas_are_three_finite_weights(lambdas):
    with pytest.raises(InputError, match="expected three weights, none negative"):
        SemedaLoss(NET, lambdas=lambdas)
    with pytest.raises(InputError, match="lambda1 is"):
        PPCEOnEdgesLoss(NET, lambda1=float("nan"))


def test_repr_shows_the_settings():
    shown = repr(SemedaLoss(NET, lambdas=(0, 1, 0), norm="l2"))
    assert all(
        word in shown
        for word in ("num_classes=4", "lambdas=(0.0, 1.0, 0.0)", "norm='l2'", "relu='before'", "ignore_index=255")
    )
    assert (
        "lambda1=2.0" in repr(UbernetLoss(2))
        and "lambda1" in repr(PPCEOnEdgesLoss(NET))
        and "weight=" in repr(build("lovasz"))
    )


def masks(count=6, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return [np.kron(rng.integers(0, 3, (size // 8, size // 8)), np.ones((8, 8))).astype(np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def trained():
    with warnings.catch_warnings(): # none of a low F1
        warnings.simplefilter("error")
        return SemedaLoss(num_classes=3, masks=masks(), steps=20)


def test_a_trained_edge_net(trained):
    mask = torch.from_numpy(masks()[0])[None]
    assert trained(6 * one_hot(mask, 3), mask) < .2
    assert torch.equal(trained.edge_net().conv1.weight, trained.kernel1)


def test_masks_in_any_form(tmp_path, trained):
    for i, mask in enumerate(masks()):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "a" / f"{i}.png")
    forms = [np.stack(masks()), torch.from_numpy(np.stack(masks())), [torch.from_numpy(m)[None] for m in masks()],
             [m.astype(np.uint16) for m in masks()], tmp_path, str(tmp_path)]
    for form in forms:
        found = checked_masks(form, 3)
        assert all(np.array_equal(a.numpy(), b) for a, b in zip(found, masks(), strict=True))
    assert torch.equal(SemedaLoss(num_classes=3, masks=tmp_path, steps=20).kernel2, trained.kernel2)
    with pytest.warns(UserWarning, match="edge F1 of 0.* on its masks; expected 0.9 or more"):
        SemedaLoss(num_classes=3, masks=tmp_path, steps=1)


@pytest.mark.parametrize(
    "given, words",
    [
        ([], "masks is empty"),
        (np.full((1, 8, 8), 11), "labels of mask 0 contain 11; expected 0..10 or 255"),
        ([np.zeros((8, 8))], "expected integers, (H, W)"),
        (np.zeros((8, 8), int), "mask 0 has shape (8,)"),
        (np.zeros((1, 8, 8, 3), int), "mask 0 has shape (8, 8, 3)"),
    ],
)
def test_masks_that_are_refused(given, words):
    with pytest.raises(InputError) as e:
        SemedaLoss(num_classes=11, masks=given)
    assert words in str(e.value)


@pytest.mark.parametrize("given", [dict(steps=50), dict(cache="folder")])
def test_settings_of_a_training_beside_an_edge_net_are_refused(given):
    [(name, value)] = given.items()
    with pytest.raises(InputError, match=f"{name} is {value!r} beside edge_net 'voc', which is not trained"):
        SemedaLoss("voc", **given)


def test_training_is_kept_in_a_folder(tmp_path, monkeypatch):
    settings = dict(num_classes=3, masks=masks(), steps=10, cache=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = SemedaLoss(**settings)
        monkeypatch.setattr("semeda.edge_net_files.train_edge_net", None)
        assert torch.equal(SemedaLoss(**settings).kernel1, first.kernel1)


def test_a_loss_comes_back_from_a_checkpoint(trained):
    fresh = SemedaLoss(num_classes=3)
    logits, labels = torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    with pytest.raises(InputError, match="SemedaLoss has no edge net yet; expected load_state_dict"):
        fresh(logits, labels)
    fresh.load_state_dict(SemedaLoss(num_classes=3).state_dict()) # that one has none either
    with pytest.raises(InputError, match="SemedaLoss has no edge net yet; expected load_state_dict"):
        fresh(logits, labels)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), trained)
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), fresh)
    other.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    assert torch.equal(fresh(logits, labels), trained(logits, labels))
    left_out = SemedaLoss(NET, persistent=False)
    assert not left_out.state_dict()


def test_lightning_checkpoint(tmp_path, trained):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'semeda[bench]'")

    class Model(lightning.LightningModule):
        def __init__(self, masks=None):
            super().__init__()
            self.net = torch.nn.Conv2d(3, 3, 1)
            self.loss = trained if masks else SemedaLoss(num_classes=3)

    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    model = Model(masks=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = Model.load_from_checkpoint(tmp_path / "x.ckpt")
    batch = torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    assert torch.equal(again.loss(*batch), model.loss(*batch))


def test_save_and_load(tmp_path):
    path = tmp_path / "loss.safetensors"
    loss = SemedaLoss(NET, lambdas=(0, 1, .5), relu="after", norm="l2", reduction="relative")
    loss.save(path)
    again = SemedaLoss(path)
    assert repr(again) == repr(loss) and all(torch.equal(a, b) for a, b in zip(again.buffers(), loss.buffers()))
    assert SemedaLoss(str(path), norm="l1").norm == "l1" and SemedaLoss(path, lambdas=(1, 0, 0)).lambdas == (1., 0., 0.)
    PPCEOnEdgesLoss(NET).save(tmp_path / "other.safetensors")
    assert SemedaLoss(tmp_path / "other.safetensors").lambdas == (0., .25, 0.)


def test_an_edge_net_of_nan_is_refused():
    net = EdgeNet(3).requires_grad_(False)
    net.conv2.bias[3] = float("nan")
    with pytest.raises(InputError, match="edge net has weights that are not finite"):
        FrozenEdgeNet(net)


def test_bytes_stay_bytes():
    logits, labels = torch.randn(1, 4, 6, 6), torch.ones(1, 6, 6, dtype=torch.uint8)
    assert checked(logits, labels)[1].dtype == torch.uint8


def test_void_that_the_labels_dtype_cannot_hold(batch):
    logits, labels = batch
    value = build("trimap_lovasz")(logits, labels)
    assert torch.equal(build("trimap_lovasz", ignore_index=300)(logits, labels.to(torch.uint8)), value)


VOID_IN_RANGE = dict(FUNCTIONS, ppce_on_edges=lambda z, y, **k: ppce_on_edges(z, y, NET.weights, **k),
                     semeda=lambda z, y, **k: semeda(z, y, NET.weights, **k),
                     semeda_by_image=lambda z, y, **k: semeda_by_image(z, y, NET.weights, **k), edge_iou=edge_iou)


@pytest.mark.parametrize("name", VOID_IN_RANGE)
def test_void_among_the_classes_is_void_while_compiling_too(name, monkeypatch):
    logits = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.zeros(2, 16, 16, dtype=torch.long) # 0 is void
    labels[:, 4:12, 4:8], labels[:, 4:12, 8:12] = 1, 2
    loss = VOID_IN_RANGE[name]
    expected = loss(logits, labels, ignore_index=0)
    compiled = torch.compile(loss, backend="eager")(logits, labels, ignore_index=0)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    every_class = lambda labels, num_classes, void: torch.arange(num_classes) # as on a GPU
    monkeypatch.setattr("semeda.rivals.present_classes", every_class)
    monkeypatch.setattr("semeda.boundary_losses.present_classes", every_class)
    torch.testing.assert_close(loss(logits, labels, ignore_index=0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VOID_IN_RANGE)
@pytest.mark.parametrize("dtype, void", [(torch.uint8, 256), (torch.uint8, -1), (torch.int16, 65536)])
def test_a_void_that_the_labels_cannot_hold_is_on_no_pixel(name, dtype, void, batch):
    logits, labels = batch
    loss = VOID_IN_RANGE[name]
    assert loss(logits, labels.to(dtype), ignore_index=void) == loss(logits, labels, ignore_index=void)


@pytest.mark.parametrize("classes, dtype", [(150, torch.int8), (256, torch.uint8), (300, torch.uint8)])
def test_labels_in_few_bits_of_many_classes(classes, dtype):
    g = torch.Generator().manual_seed(0)
    net = EdgeNet(classes).requires_grad_(False)
    logits, labels = torch.randn(1, classes, 8, 8, generator=g), torch.randint(100, (1, 8, 8), generator=g)
    for term in (semeda, semeda_by_image):
        torch.testing.assert_close(term(logits, labels.to(dtype), net.weights), semeda(logits, labels, net.weights))


def test_labels_that_numpy_has_changed_are_looked_at():
    array = np.zeros((1, 8, 8), int)
    labels, logits = torch.from_numpy(array), torch.randn(1, 4, 8, 8)
    for loss in FUNCTIONS.values():
        array[:] = 0
        loss(logits, labels)
        array[:, 2:5, 2:5] = 9
        with pytest.raises(InputError, match="labels contain 9"):
            loss(logits, labels)


@pytest.mark.parametrize("call, message", [
    (lambda z, y: semeda(z, y, NET.weights, norm="L1"), "norm is 'L1'; expected one of l1, l2"),
    (lambda z, y: semeda_by_image(z, y, NET.weights, reduction="mean"), "reduction is 'mean'; expected one of"),
    (lambda z, y: semeda(z, y, NET.weights, relu="befor"), "relu is 'befor'; expected one of before, after"),
    (lambda z, y: semeda_by_image(z, y, NET.weights, lambdas=(0, 1)), "expected three weights"),
    (lambda z, y: semeda(z, y, NET.weights, lambdas=(0, 1, 0, 0)), "expected three weights"),
    (lambda z, y: edge_iou(z, y, false_weight=-1), "false_weight is -1"),
    (lambda z, y: active_boundary(z, y, theta=0), "theta is 0"),
    (lambda z, y: active_boundary(z, y, smoothing=2), "smoothing is 2"),
    (lambda z, y: active_boundary(z, y, share=-1), "share is -1"),
    (lambda z, y: ppce(z, y, label_smoothing=-1), "label_smoothing is -1"),
])
def test_functions_refuse_what_modules_refuse(call, message, batch):
    with pytest.raises(InputError, match=message):
        call(*batch)


def test_a_class_that_is_ruled_out_gives_finite_gradients():
    logits = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 12, 12, dtype=torch.long)
    labels[:, :, 6:] = 1
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    value = active_boundary(logits, labels, share=.1)
    value.backward()
    assert value > 0 and logits.grad[:, :3].isfinite().all() and logits.grad[:, :3].any()


@pytest.mark.parametrize("name", VOID_IN_RANGE)
def test_no_loss_hides_a_nan(name):
    labels = torch.randint(4, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    assert VOID_IN_RANGE[name](torch.full((1, 4, 16, 16), torch.nan), labels).isnan()


@pytest.mark.filterwarnings("ignore:the SEMEDA term")
@pytest.mark.parametrize("layer", range(3))
def test_autocast_changes_no_loss_that_looks_through_an_edge_net(layer):
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, 4:12, 4:12] = 1
    logits = (12 * one_hot(labels, 11)).requires_grad_() # a network that is sure
    loss = SemedaLoss("camvid", lambdas=[float(i == layer) for i in range(3)])
    weights = loss.weights
    for term in (loss, lambda z, y: semeda(z, y, weights, loss.lambdas), lambda z, y: ppce_on_edges(z, y, weights)):
        expected = torch.autograd.grad(term(logits, labels), logits)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(term(logits, labels), logits)[0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0., .1])
def test_pixels_of_weight_0_alone_count_nothing(smoothing):
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    value = PPCELoss(weight=[1, 1, 0], label_smoothing=smoothing)(logits, torch.full((1, 4, 4), 2))
    value.backward()
    assert value == 0 and not logits.grad.any()


def test_settings_of_the_cross_entropy_come_back_from_a_file(tmp_path, batch):
    first = SemedaLoss(NET, ignore_index=0, weight=[2, 1, 1, 1], label_smoothing=.1)
    first.save(tmp_path / "loss.safetensors")
    again = SemedaLoss(tmp_path / "loss.safetensors", ignore_index=0)
    assert again(*batch) == first(*batch)
    with pytest.warns(UserWarning, match="ignore_index=0; this one has ignore_index=255"):
        SemedaLoss(tmp_path / "loss.safetensors")
    other = SemedaLoss(tmp_path / "loss.safetensors", ignore_index=0, weight=[1, 1, 1, 1], label_smoothing=0)
    assert other.label_smoothing == 0 and other.weight.tolist() == [1, 1, 1, 1]


def test_terms_of_two_edge_ious_have_two_names(batch):
    loss = build_loss("edge_iou+edge_iou(reaches=(1,))")
    loss(*batch)
    assert list(loss.terms) == ["ppce", "edge_iou", "edge_iou_2"]
    assert set(loss.terms) <= set(loss_terms("edge_iou+edge_iou(reaches=(1,))"))


def test_no_loss_draws_from_the_generator_of_torch(tmp_path):
    before = torch.get_rng_state()
    SemedaLoss("camvid").save(tmp_path / "loss.safetensors")
    SemedaLoss(tmp_path / "loss.safetensors").edge_net()
    assert torch.equal(torch.get_rng_state(), before)


def test_edge_iou_takes_transposed_labels_and_empty_batches(batch):
    logits, labels = batch
    turned = labels.mT.contiguous().mT
    assert not turned.is_contiguous() and edge_iou(logits, turned) == edge_iou(logits, labels)
    assert edge_iou(logits[:0], labels[:0]) == 0


@pytest.mark.parametrize("ignore_index", ["255", 255.])
def test_a_label_of_void_that_is_no_integer_is_told(ignore_index):
    with pytest.raises(InputError, match=f"ignore_index is {ignore_index!r}; expected an integer, or None"):
        build_loss("lovasz", ignore_index=ignore_index)(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4).long())


@pytest.mark.parametrize("masks, told", [
    ([Path("a.png")], "mask 0 is a PosixPath; expected integers, .H, W., or a folder for all"),
    (["a.png"], "mask 0 is a str; expected integers"),
    ("nowhere", "masks 'nowhere' is no folder; expected one of label images, or masks"),
])
def test_masks_that_are_none_are_told(masks, told):
    with pytest.raises(InputError, match=told):
        checked_masks(masks, 3)


def test_labels_of_int8_beside_many_classes():
    with pytest.raises(InputError, match="labels contain -1; expected 0..299 or 255"):
        build_loss("lovasz")(torch.randn(1, 300, 4, 4), torch.full((1, 4, 4), -1, dtype=torch.int8))


@pytest.mark.parametrize("void", [[255], 2**63, 255., "255"])
def test_void_numbers_that_are_none(void):
    with pytest.raises(InputError, match="ignore_index is .*; expected an integer, or None"):
        ppce(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), void)


def test_void_numbers_of_numpy():
    labels = torch.tensor([[[0, 1], [2, 255]]])
    logits = torch.randn(1, 3, 2, 2)
    assert torch.equal(ppce(logits, labels, np.int64(255)), ppce(logits, labels, 255))


def test_logits_that_are_missing():
    with pytest.raises(InputError, match="logits are a dict with out; expected a tensor"):
        ppce(dict(out=None), torch.zeros(1, 4, 4, dtype=torch.long))


def test_a_base_of_torch_has_the_void_of_its_term():
    "-100 is torch's for none, and class 0 would be a class to one and void to the other"
    for loss in ("ppce(ignore_index=0)+torch.nn:CrossEntropyLoss(ignore_index=-100)",):
        with pytest.raises(InputError, match="ignore_index is 0, but -100 of the CrossEntropyLoss beside it"):
            build_loss(loss, ignore_index=0)
    build_loss("ppce+torch.nn:CrossEntropyLoss(ignore_index=-100)")
    build_loss("ppce+torch.nn:CrossEntropyLoss(ignore_index=-100)", ignore_index=None)


@pytest.mark.parametrize("small, full, taken", [
    ((10, 20), (80, 160), True), ((6, 8), (45, 60), True), ((5, 9), (33, 65), True), ((1, 1), (9, 5), True),
    ((5, 8), (33, 64), True), ((10, 20), (80, 40), False), ((80, 80), (20, 20), False), ((10, 20), (80, 80), False),
])
def test_logits_are_enlarged_by_one_factor(small, full, taken):
    logits, labels = torch.randn(1, 3, *small), torch.zeros(1, *full, dtype=torch.long)
    if taken:
        assert PPCELoss(upsample=True)(logits, labels).isfinite()
        return
    sizes = f"logits are {small[0]}x{small[1]}, labels {full[0]}x{full[1]}"
    with pytest.raises(InputError, match=f"{sizes}; expected logits that are smaller by one factor"):
        PPCELoss(upsample=True)(logits, labels)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_images_without_a_pixel_are_refused(shape):
    for loss in (PPCELoss(), SemedaLoss(NET)):
        classes = 4 if isinstance(loss, PPCELoss) else loss.num_classes
        with pytest.raises(InputError, match="expected at least one pixel an image"):
            loss(torch.randn(1, classes, *shape), torch.zeros(1, *shape, dtype=torch.long))


@pytest.mark.parametrize("weight, words", [
    (torch.tensor([torch.nan, 1, 1]), "weight is [nan, 1.0, 1.0]; expected a number of at least 0 for each class"),
    ([-1., 1, 1], "weight is [-1.0, 1.0, 1.0]; expected a number"), (torch.ones(3, 3), "expected a number"),
    (2., "weight is 2.0; expected a number"), ([1., 1], "weight has 2 numbers; expected 3, one for each class"),
])
def test_weights_of_the_function_are_checked(weight, words):
    with pytest.raises(InputError) as e:
        ppce(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), weight=weight)
    assert words in str(e.value)


def test_an_edge_net_of_other_classes_is_told():
    net, logits = EdgeNet(5).requires_grad_(False), torch.randn(1, 4, 8, 8)
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    for loss in (semeda, semeda_by_image, ppce_on_edges):
        with pytest.raises(InputError, match="logits have 4 classes; expected 5, the edge net's"):
            loss(logits, labels, net.weights)


def test_what_is_kept_with_a_loss_has_other_names(tmp_path):
    loss = SemedaLoss(NET, ignore_index=np.int64(255))
    loss.save(tmp_path / "loss.safetensors", epoch=3)
    assert SemedaLoss(tmp_path / "loss.safetensors").ignore_index == 255
    for name, value, words in (("loss", 1, "loss is 1; expected another name"), ("epoch", np.int64(3), "as JSON"),
                               ("num_classes", 4, "num_classes is 4; expected another name")):
        with pytest.raises(InputError, match=words):
            loss.save(tmp_path / "other.safetensors", **{name: value})
    assert not (tmp_path / "other.safetensors").exists()
    PPCEOnEdgesLoss(NET).save(tmp_path / "text.safetensors", loss="ppce_edges")
    assert SemedaLoss(tmp_path / "text.safetensors").lambdas == SemedaLoss(NET).lambdas


@pytest.mark.parametrize("void, told", [(255, True), (None, False), (299, False)])
def test_class_255_of_more_is_not_left_out_without_a_word(void, told):
    logits, labels = torch.zeros(1, 300, 2, 2), torch.tensor([[[255, 256], [0, 1]]])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ppce(logits, labels, void)
        ppce(logits, labels.clamp(max=254), void)
    assert [("contain 255, which is one of 300 classes" in str(w.message)) for w in found] == [True] * told
