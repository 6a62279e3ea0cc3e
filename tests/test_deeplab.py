import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision

from semeda.deeplab import DeepLabV2, OtherNetwork, checkpoint_layout, init_weights, resnet
from semeda.edges import InputError


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilation_is_torchvisions(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    ours = resnet(name, 8).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc")})
    body = torch.nn.Sequential(*list(theirs.children())[:-2])
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(ours(x), body(x))


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_output_stride(stride):
    assert resnet("resnet18", stride).eval()(torch.randn(1, 3, 128, 96)).shape[-2:] == (128 // stride, 96 // stride)


@pytest.mark.parametrize("mode, trained", [("frozen", False), ("affine", True), ("trained", True)])
def test_batch_norm(mode, trained):
    net = DeepLabV2(3, "resnet18", layers=2, batch_norm=mode).train()
    mean, scale = net.backbone.bn1.running_mean.clone(), net.backbone.bn1.weight
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert torch.equal(mean, net.backbone.bn1.running_mean) == (mode != "trained")
    assert (scale.grad is not None) == trained


def test_init_weights_reports(tmp_path):
    state = {k: v for k, v in torchvision.models.resnet18().state_dict().items() if not k.startswith("layer3.1")}
    torch.save(state, tmp_path / "w.pth")
    net = DeepLabV2(3, "resnet18", layers=3)
    report = init_weights(net, tmp_path / "w.pth")
    assert torch.equal(net.backbone.conv1.weight, state["conv1.weight"])
    assert report["missing"] and all(k.startswith("layer3.1") for k in report["missing"])
    assert {"fc.weight", "layer4.0.conv1.weight"} <= set(report["unused"])


def test_other_network_reads_a_trunk(tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed: pip install 'semeda[peers]'")
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "w.pth")
    net = OtherNetwork("smp.Unet", 3, batch_norm="frozen").train()
    report = init_weights(net, tmp_path / "w.pth")
    assert report["missing"] == [] and set(report["unused"]) == {"fc.weight", "fc.bias"}
    assert torch.equal(net.net.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert not net.backbone.bn1.training and all(m.training for m in net.net.decoder.modules())
    assert sum(p.numel() for part in (net.backbone, net.head) for p in part.parameters()) == sum(p.numel() for p in net.parameters())
    assert net(torch.randn(1, 3, 45, 70)).shape == (1, 3, 45, 70)


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("write, words", [
    (lambda p: torch.save(torchvision.models.resnet50().state_dict(), p), "of shape"),
    (lambda p: torch.save({"a": torch.zeros(1)}, p), "fits no known layout; its first keys are a"),
    (lambda p: torch.save([1, 2], p), "is no dictionary of tensors"),
    (lambda p: p.write_bytes(b"garbage"), "cannot be read"),
    (lambda p: p.write_bytes(pickle.dumps(Evil())), "cannot be read"),
    (lambda p: None, "does not exist"),
])
def test_init_weights_refuses(tmp_path, monkeypatch, write, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    write(path)
    net = DeepLabV2(3, "resnet18", layers=3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(InputError, match=words) as e:
        init_weights(net, path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not (tmp_path / "executed").exists()


# The public caffe-style layouts, written down from their architecture: 7x7 stem, max-pool rounding up, bottlenecks with
# the stride on the first 1x1, dilation 2 in all blocks of layer3 and 4 in all of layer4, four summed 3x3 classifiers.
BLOCKS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
DEEPLAB_RESNET = {"stem": ("conv1", "bn1"), 1: ("conv1", "bn1"), 2: ("conv2", "bn2"), 3: ("conv3", "bn3"), 0: ("downsample.0", "downsample.1")}
DEEPLAB_PYTORCH = {1: "reduce", 2: "conv3x3", 3: "increase", 0: "shortcut"}


def deeplab_resnet(prefix):
    def key(layer, block, unit, bn):
        if layer == 0:
            return prefix + DEEPLAB_RESNET["stem"][bn]
        return f"{prefix}layer{layer}.{block}.{DEEPLAB_RESNET[unit][bn]}"
    return key, lambda branch: f"{prefix}layer5.conv2d_list.{branch}"


def deeplab_pytorch(prefix):
    def key(layer, block, unit, bn):
        if layer == 0:
            return f"{prefix}layer1.conv1.{('conv', 'bn')[bn]}"
        return f"{prefix}layer{layer + 1}.block{block + 1}.{DEEPLAB_PYTORCH[unit]}.{('conv', 'bn')[bn]}"
    return key, lambda branch: f"{prefix}aspp.c{branch}"


LAYOUTS = {"deeplab-resnet": deeplab_resnet(""), "with Scale.": deeplab_resnet("Scale."), "module. and Scale.": deeplab_resnet("module.Scale."),
           "deeplab-pytorch": deeplab_pytorch("base."), "without base.": deeplab_pytorch(""), "module. and base.": deeplab_pytorch("module.base.")}


def random_state(key, head, classes):
    g, state = torch.Generator().manual_seed(0), {}
    def unit(name, bn, inputs, outputs, kernel):
        state[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=g) * (1 / (inputs * kernel**2))**.5
        for part, low, high in (("weight", .5, 1.), ("bias", -.1, .1), ("running_mean", -.1, .1), ("running_var", .5, 1.5)):
            state[f"{bn}.{part}"] = low + (high - low) * torch.rand(outputs, generator=g)
    unit(key(0, 0, 0, 0), key(0, 0, 0, 1), 3, 64, 7)
    inputs = 64
    for layer, (count, width) in enumerate(zip(BLOCKS, WIDTHS), 1):
        for block in range(count):
            if block == 0:
                unit(key(layer, 0, 0, 0), key(layer, 0, 0, 1), inputs, 4 * width, 1)
            for i, (a, b, k) in enumerate([(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)], 1):
                unit(key(layer, block, i, 0), key(layer, block, i, 1), a, b, k)
            inputs = 4 * width
    for branch in range(4):
        state[f"{head(branch)}.weight"] = torch.randn(classes, 2048, 3, 3, generator=g) * .01
        state[f"{head(branch)}.bias"] = torch.randn(classes, generator=g)
    return state


def reference(state, key, head, x):
    size = x.shape[-2:]
    def unit(x, at, stride=1, padding=0, dilation=1):
        conv, bn = key(*at, 0), key(*at, 1)
        x = F.conv2d(x, state[f"{conv}.weight"], None, stride, padding, dilation)
        return F.batch_norm(x, *(state[f"{bn}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")), eps=1e-5)
    x = F.max_pool2d(unit(x, (0, 0, 0), 2, 3).relu(), 3, 2, 1, ceil_mode=True)
    for layer, count in enumerate(BLOCKS, 1):
        dilation = {3: 2, 4: 4}.get(layer, 1)
        for block in range(count):
            stride = 2 if layer == 2 and block == 0 else 1
            y = unit(x, (layer, block, 1), stride).relu()
            y = unit(y, (layer, block, 2), 1, dilation, dilation).relu()
            x = (unit(y, (layer, block, 3)) + (unit(x, (layer, 0, 0), stride) if block == 0 else x)).relu()
    x = sum(F.conv2d(x, state[f"{head(i)}.weight"], state[f"{head(i)}.bias"], 1, r, r) for i, r in enumerate((6, 12, 18, 24)))
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts(tmp_path, layout):
    key, head = LAYOUTS[layout]
    state = random_state(key, head, 5)
    torch.save(state, tmp_path / "w.pth")
    net = DeepLabV2(5, "resnet50", style="caffe").eval()
    report = init_weights(net, tmp_path / "w.pth")
    assert report["missing"] == [] and report["unused"] == [] and report["loaded"] == len(state)
    x = torch.randn(1, 3, 81, 65)
    with torch.no_grad():
        expected = reference(state, key, head, x)
        assert ((net(x) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_other_classes_keep_their_head(tmp_path):
    key, head = LAYOUTS["deeplab-pytorch"]
    torch.save(random_state(key, head, 91), tmp_path / "coco.pth")
    net = DeepLabV2(5, "resnet50", style="caffe")
    before = net.head.branches[0].weight.clone()
    report = init_weights(net, tmp_path / "coco.pth")
    assert torch.equal(net.head.branches[0].weight, before)
    assert len(report["unused"]) == 8 and len(report["missing"]) == 8


def test_wrong_style_is_refused(tmp_path):
    key, head = LAYOUTS["with Scale."]
    torch.save(random_state(key, head, 5), tmp_path / "w.pth")
    with pytest.raises(InputError, match="has the layout of deeplab-resnet; expected style 'caffe', not 'torchvision'"):
        init_weights(DeepLabV2(5, "resnet50"), tmp_path / "w.pth")
    with pytest.raises(InputError, match="style is 'caffe' but backbone is 'resnet18'"):
        DeepLabV2(5, "resnet18", style="caffe")


def test_untrained_branches_are_told(tmp_path):
    key, head = LAYOUTS["deeplab-resnet"]
    state = random_state(key, head, 21)
    for branch in (0, 1):
        state[f"{head(branch)}.weight"] *= 3
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="branches 2 and 3 of the head look untrained"):
        init_weights(DeepLabV2(21, "resnet50", style="caffe"), tmp_path / "w.pth")


@pytest.mark.parametrize("make", [lambda: DeepLabV2(5, "resnet18", layers=3, edge_head=True), lambda: OtherNetwork("torchvision.lraspp_mobilenet_v3_large", 5)])
def test_a_run_goes_on_from_another(tmp_path, make):
    trained, net = make(), make()
    torch.save(dict(step=3, net=trained.state_dict(), optimizer={}), tmp_path / "checkpoint.pt")
    report = init_weights(net, tmp_path / "checkpoint.pt")
    assert report["layout"] == "semeda" and report["missing"] == report["unused"] == []
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), net.state_dict().values(), strict=True))


def test_layout_names():
    assert checkpoint_layout(["backbone.conv1.weight", "classifier.4.bias"])[0] != "semeda" # torchvision's segmentation networks
    assert checkpoint_layout(["conv1.weight", "fc.bias"])[:2] == ("torchvision", "torchvision")


def test_pooling_rounds_up_in_caffe_style():
    shape = torch.empty(1, 3, 512, 1024, device="meta")
    sizes = {style: tuple(resnet("resnet50", 8, style=style).to("meta")(shape).shape[-2:]) for style in ("torchvision", "caffe")}
    assert sizes == {"torchvision": (64, 128), "caffe": (65, 129)}


def test_edge_head_is_for_training_alone():
    net, x = DeepLabV2(3, "resnet18", layers=2, edge_head=True), torch.randn(1, 3, 32, 40)
    logits, edges = net.train()(x)
    assert logits.shape == (1, 3, 32, 40) and edges.shape == (1, 2, 32, 40)
    assert net.eval()(x).shape == (1, 3, 32, 40)
