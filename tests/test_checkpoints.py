import json
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision

from semeda.checkpoints import (
    checkpoint_hash,
    checkpoint_layout,
    image_scale,
    init_weights,
    read_checkpoint,
    weights_line,
)
from semeda.core import InputError
from semeda.deeplab import DeepLabV2
from semeda.networks import build_network
from tests.conftest import real_data


def test_init_weights_reports(tmp_path):
    state = {k: v for k, v in torchvision.models.resnet18().state_dict().items() if not k.startswith("layer3")}
    torch.save(state, tmp_path / "w.pth")
    net = DeepLabV2(3, "resnet18", layers=3)
    report = init_weights(net, tmp_path / "w.pth")
    assert torch.equal(net.backbone.conv1.weight, state["conv1.weight"])
    assert report["missing"] and all(k.startswith("layer3") for k in report["missing"])
    assert {"fc.weight", "layer4.0.conv1.weight"} <= set(report["unused"])
    assert report["style"] == "torchvision"
    line = weights_line(report, "w.pth")
    assert (
        "missing: layer3.0.conv1.weight, layer3.0.bn1.weight" in line and "unused: layer4" in line and "\n" not in line
    )


def test_a_trunk_of_another_library(tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="needs pip install 'semeda[peers]'")
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "w.pth")
    net = build_network("smp.Unet", 3, backbone="resnet18", batch_norm="frozen").train()
    report = init_weights(net, tmp_path / "w.pth")
    assert report["missing"] == [] and set(report["unused"]) == {"fc.weight", "fc.bias"}
    assert torch.equal(net.net.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert not net.backbone.bn1.training and all(m.training for m in net.net.decoder.modules())
    parts = sum(p.numel() for part in (net.backbone, net.head) for p in part.parameters())
    assert parts == sum(p.numel() for p in net.parameters())
    assert net(torch.randn(1, 3, 45, 70)).shape == (1, 3, 45, 70)


def test_a_resnet_of_another_depth_is_refused(tmp_path):
    with torch.device("meta"):
        shapes = {name: make().state_dict() for name, make in (("resnet50", torchvision.models.resnet50),
                                                               ("resnet101", torchvision.models.resnet101))}
    for given, wanted, blocks, expected in (("resnet50", "resnet101", 6, 23), ("resnet101", "resnet50", 23, 6)):
        state = {key: torch.zeros(()).to(value.dtype).expand(value.shape) for key, value in shapes[given].items()}
        torch.save(state, tmp_path / "w.pth")
        net = DeepLabV2(3, wanted)
        with pytest.raises(InputError, match=f"has {blocks} blocks in layer3; expected {expected}, as the network"):
            init_weights(net, tmp_path / "w.pth", "torchvision")


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


def cut(path):
    "A checkpoint of which the second half is missing"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:9000])


def other_shape(path):
    state = DeepLabV2(3, "resnet18", layers=2).backbone.state_dict()
    torch.save(state | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, path)


def not_finite(path):
    state = DeepLabV2(3, "resnet18", layers=2).backbone.state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize("write, words", [
    (other_shape, r"has layer1.0.conv1.weight of shape \(64, 64, 1, 1\); expected \(64, 64, 3, 3\)"),
    (lambda p: torch.save({"a": torch.zeros(1)}, p), "fits no known layout; its first keys are a"),
    (lambda p: torch.save([1, 2], p), "is no dictionary of tensors"),
    (lambda p: p.write_bytes(b""), "cannot be read: it is empty"),
    (lambda p: p.write_bytes(b"garbage"), "cannot be read"),
    (lambda p: p.write_bytes(pickle.dumps(Evil())), "cannot be read"),
    (lambda p: torch.save({"net": Evil()}, p), "which is no tensor and is not loaded"),
    (cut, "cannot be read"),
    (not_finite, "has layer1.0.conv1.weight with NaN or infinite values"),
    (lambda p: p.mkdir(), "does not exist"),
    (lambda p: None, "does not exist"),
])
def test_init_weights_refuses(tmp_path, monkeypatch, write, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    write(path)
    net = DeepLabV2(3, "resnet18", layers=2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(InputError, match=words) as e:
        init_weights(net, path)
    message = str(e.value)
    assert str(path) in message and "\n" not in message and "weights_only" not in message and len(message) < 500
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("config, told", [
    (dict(upsampling="stretched"), "upsampling stretched"), (dict(upsampling="aligned"), ""),
    (dict(), "upsampling stretched"), (dict(network="smp.Unet"), "")])
def test_weights_that_were_trained_for_other_logits_are_told(tmp_path, config, told):
    net = DeepLabV2(3, "resnet18", layers=2)
    state = dict(net=net.state_dict(), config=dict(style="torchvision") | config)
    torch.save(state | dict(hash=checkpoint_hash(state)), tmp_path / "checkpoint.pt")
    line = weights_line(init_weights(net, tmp_path / "checkpoint.pt"), "w")
    assert ("; trained with upsampling" in line) == bool(told) and told in line


def test_weights_of_version_0_1_are_told_as_stretched(tmp_path):
    net = DeepLabV2(3, "resnet18", layers=2)
    torch.save(dict(step=1, net=net.state_dict(), optimizer={}, random={}), tmp_path / "checkpoint.pt")
    assert init_weights(net, tmp_path / "checkpoint.pt")["upsampling"] == "stretched"


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\0\0\0\0\0\0\0{\"a\": 1"])
def test_safetensors_that_cannot_be_read(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint .*w.safetensors cannot be read"):
        read_checkpoint(tmp_path / "w.safetensors")


# The public caffe-style layouts, written down from their architecture: 7x7 stem, max-pool rounding up, bottlenecks with
# the stride on the first 1x1, dilation 2 in all blocks of layer3 and 4 in all of layer4, four summed 3x3 classifiers.
BLOCKS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
RESNET_UNITS = {1: ("conv1", "bn1"), 2: ("conv2", "bn2"), 3: ("conv3", "bn3"), 0: ("downsample.0", "downsample.1")}
BLOCK_UNITS = {1: "reduce", 2: "conv3x3", 3: "increase", 0: "shortcut"}


def deeplab_resnet(prefix):
    def key(layer, block, unit, bn):
        if layer == 0:
            return prefix + ("conv1", "bn1")[bn]
        return f"{prefix}layer{layer}.{block}.{RESNET_UNITS[unit][bn]}"
    return key, lambda branch: f"{prefix}layer5.conv2d_list.{branch}"


def deeplab_pytorch(prefix, aspp="aspp.", shortcut="shortcut"):
    units = BLOCK_UNITS | {0: shortcut}

    def key(layer, block, unit, bn):
        if layer == 0:
            return f"{prefix}layer1.conv1.{('conv', 'bn')[bn]}"
        return f"{prefix}layer{layer + 1}.block{block + 1}.{units[unit]}.{('conv', 'bn')[bn]}"
    return key, lambda branch: f"{prefix}{aspp}c{branch}"


LAYOUTS = {
    "deeplab-resnet": deeplab_resnet(""), "with Scale.": deeplab_resnet("Scale."),
    "module. and Scale.": deeplab_resnet("module.Scale."), "with scale.": deeplab_resnet("scale."),
    "deeplab-pytorch": deeplab_pytorch("base."), "without base.": deeplab_pytorch(""),
    "module. and base.": deeplab_pytorch("module.base."),
    "convert.py of 2018": deeplab_pytorch("scale.", "aspp.stages.", "proj"),
    "module. and scale.": deeplab_pytorch("module.scale.", "aspp.stages.", "proj"),
}


def random_state(key, head, classes, layers=4):
    g, state = torch.Generator().manual_seed(0), {}

    def unit(name, bn, inputs, outputs, kernel):
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=g)
        state[f"{name}.weight"] = weight * (1 / (inputs * kernel**2))**.5
        for part, low, high in (("weight", .5, 1.), ("bias", -.1, .1), ("running_mean", -.1, .1),
                                ("running_var", .5, 1.5)):
            state[f"{bn}.{part}"] = low + (high - low) * torch.rand(outputs, generator=g)
    unit(key(0, 0, 0, 0), key(0, 0, 0, 1), 3, 64, 7)
    inputs = 64
    for layer, (count, width) in enumerate(zip(BLOCKS[:layers], WIDTHS), 1):
        for block in range(count):
            if block == 0:
                unit(key(layer, 0, 0, 0), key(layer, 0, 0, 1), inputs, 4 * width, 1)
            for i, (a, b, k) in enumerate([(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)], 1):
                unit(key(layer, block, i, 0), key(layer, block, i, 1), a, b, k)
            inputs = 4 * width
    for branch in range(4):
        state[f"{head(branch)}.weight"] = torch.randn(classes, inputs, 3, 3, generator=g) * .01
        state[f"{head(branch)}.bias"] = torch.randn(classes, generator=g)
    return state


def reference(state, key, head, x):
    size = x.shape[-2:]

    def unit(x, at, stride=1, padding=0, dilation=1):
        conv, bn = key(*at, 0), key(*at, 1)
        x = F.conv2d(x, state[f"{conv}.weight"], None, stride, padding, dilation)
        moments = (state[f"{bn}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *moments, eps=1e-5)
    x = F.max_pool2d(unit(x, (0, 0, 0), 2, 3).relu(), 3, 2, 1, ceil_mode=True)
    for layer, count in enumerate(BLOCKS, 1):
        dilation = {3: 2, 4: 4}.get(layer, 1)
        for block in range(count):
            stride = 2 if layer == 2 and block == 0 else 1
            y = unit(x, (layer, block, 1), stride).relu()
            y = unit(y, (layer, block, 2), 1, dilation, dilation).relu()
            x = (unit(y, (layer, block, 3)) + (unit(x, (layer, 0, 0), stride) if block == 0 else x)).relu()
    branches = [(state[f"{head(i)}.weight"], state[f"{head(i)}.bias"], 1, r, r) for i, r in enumerate((6, 12, 18, 24))]
    x = sum(F.conv2d(x, *branch) for branch in branches)
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


@pytest.fixture(scope="module")
def caffe(tmp_path_factory):
    "Weights of style caffe in the layout of deeplab-resnet, two layers of them, and their file"
    state = random_state(*LAYOUTS["deeplab-resnet"], 5, layers=2)
    path = tmp_path_factory.mktemp("caffe") / "w.pth"
    torch.save(state, path)
    return state, path


@pytest.fixture(scope="module")
def bottlenecks(caffe):
    "The same tensors without the head: keys that torchvision's files have too"
    state, path = caffe
    trunk = {k: v for k, v in state.items() if not k.startswith("layer5")}
    torch.save(trunk, path.with_name("trunk.pth"))
    torch.save(trunk | {"fc.weight": torch.zeros(10, 512)}, path.with_name("fc.pth"))
    wide = trunk | {"bn1.running_var": trunk["bn1.running_var"] * 60**2}
    torch.save(wide | {"fc.weight": torch.zeros(10, 512)}, path.with_name("wide.pth"))
    return path.parent


@pytest.fixture(scope="module")
def nets():
    return {style: DeepLabV2(5, "resnet50", layers=2, style=style).eval() for style in ("torchvision", "caffe")}


def test_a_public_checkpoint_computes_what_it_did(tmp_path):
    key, head = LAYOUTS["deeplab-resnet"]
    state = random_state(key, head, 5)
    torch.save(state, tmp_path / "w.pth")
    with torch.device("meta"):
        net = DeepLabV2(5, "resnet50", style="caffe").eval()
    net = net.to_empty(device="cpu")
    report = init_weights(net, tmp_path / "w.pth")
    assert report["missing"] == [] and report["unused"] == [] and report["loaded"] == len(state)
    x = torch.randn(1, 3, 81, 65)
    with torch.no_grad():
        expected = reference(state, key, head, x)
        assert ((net(x) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_kernel_of_five_dimensions_is_told(tmp_path, nets):
    state = nets["torchvision"].state_dict()
    state |= {"backbone.conv1.weight": state["backbone.conv1.weight"][..., None],
              "backbone.bn1.running_var": state["backbone.bn1.running_var"] + 1}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match="w.pth"):
        init_weights(nets["torchvision"], tmp_path / "w.pth")


def keys_of(layout):
    "The keys of a layout, in the order of `random_state`"
    key, head = LAYOUTS[layout]
    places = [(0, 0, 0)]
    for layer, count in enumerate(BLOCKS, 1):
        for block in range(count):
            places += [(layer, block, unit) for unit in ((0, 1, 2, 3) if block == 0 else (1, 2, 3))]
    names = [f"{key(*p, 0)}.weight" for p in places]
    norms = [f"{key(*p, 1)}.{part}" for p in places for part in ("weight", "bias", "running_mean", "running_var")]
    return names + norms + [f"{head(i)}.{part}" for i in range(4) for part in ("weight", "bias")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_get_the_same_names(layout):
    family, style, names = checkpoint_layout(keys_of(layout))
    assert style == "caffe" and [names[k] for k in keys_of(layout)] == [
        checkpoint_layout(keys_of("deeplab-resnet"))[2][k] for k in keys_of("deeplab-resnet")]
    with torch.device("meta"):
        own = DeepLabV2(5, "resnet50").state_dict()
    own = {k for k in own if not k.endswith("num_batches_tracked")}
    assert set(names.values()) == own


def test_other_classes_keep_their_head(caffe):
    net = DeepLabV2(7, "resnet50", layers=2, style="caffe")
    before = net.head.branches[0].weight.clone()
    report = init_weights(net, caffe[1])
    assert torch.equal(net.head.branches[0].weight, before)
    assert len(report["unused"]) == 8 and len(report["missing"]) == 8


def test_a_layout_that_names_its_style_decides(caffe, nets):
    with pytest.raises(InputError, match="has the layout of deeplab-resnet; expected style 'caffe', not 'torchvision'"):
        init_weights(nets["torchvision"], caffe[1])
    with pytest.raises(InputError, match="init_style is 'torchvision' but .* in style 'caffe'"):
        init_weights(nets["caffe"], caffe[1], "torchvision")


@pytest.mark.parametrize("file", ["trunk", "fc"])
def test_torchvisions_keys_need_a_word_in_a_caffe_network(bottlenecks, nets, file):
    path = bottlenecks / f"{file}.pth"
    with pytest.raises(InputError, match="network is of style 'caffe'; expected init_style .* BGR images") as e:
        init_weights(nets["caffe"], path)
    assert "\n" not in str(e.value) and "points to torchvision" in str(e.value)
    with pytest.raises(InputError, match="has init_style; expected style 'torchvision', not 'caffe'"):
        init_weights(nets["caffe"], path, "torchvision")
    with pytest.warns(UserWarning, match="read in style caffe, as init_style says; .* points to torchvision"):
        report = init_weights(nets["caffe"], path, "caffe")
    assert (report["style"], report["style_known_by"]) == ("caffe", "init_style") and not report["missing"]


def test_keys_alone_are_no_proof_in_a_torchvision_network(bottlenecks, nets):
    with pytest.raises(InputError, match="which files of style caffe have as well"):
        init_weights(nets["torchvision"], bottlenecks / "trunk.pth")
    assert init_weights(nets["torchvision"], bottlenecks / "trunk.pth", "torchvision")["style"] == "torchvision"
    assert "no proof" in init_weights(nets["torchvision"], bottlenecks / "fc.pth")["style_known_by"]
    with pytest.raises(InputError, match="points to caffe"):
        init_weights(nets["torchvision"], bottlenecks / "wide.pth")
    with pytest.raises(InputError, match="init_style is 'keras'; choose from torchvision, caffe"):
        init_weights(nets["torchvision"], bottlenecks / "fc.pth", "keras")


def test_untrained_branches_are_told(caffe, tmp_path):
    state = {k: v * 3 if k in ("layer5.conv2d_list.0.weight", "layer5.conv2d_list.1.weight") else v
             for k, v in caffe[0].items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="branches 2 and 3 of the head look untrained"):
        init_weights(DeepLabV2(5, "resnet50", layers=2, style="caffe"), tmp_path / "w.pth")


@pytest.mark.parametrize("make", [
    lambda: DeepLabV2(5, "resnet18", layers=3, edge_head=True),
    lambda: build_network("torchvision.lraspp_mobilenet_v3_large", 5),
])
def test_a_run_goes_on_from_another(tmp_path, make):
    trained, net = make(), make()
    torch.save(dict(step=3, net=trained.state_dict(), optimizer={}), tmp_path / "checkpoint.pt")
    report = init_weights(net, tmp_path / "checkpoint.pt")
    assert report["layout"] == "semeda" and report["missing"] == report["unused"] == []
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), net.state_dict().values(), strict=True))


def test_a_run_carries_its_style(tmp_path, nets):
    path, state = tmp_path / "checkpoint.pt", nets["caffe"].state_dict()
    torch.save(dict(step=3, net=state, config=dict(style="caffe")), path)
    assert init_weights(nets["caffe"], path)["style"] == "caffe"
    with pytest.raises(InputError, match="has the layout of semeda; expected style 'caffe', not 'torchvision'"):
        init_weights(nets["torchvision"], path)
    torch.save(dict(step=3, net=state), path) # as of version 0.1
    with pytest.raises(InputError, match="expected init_style torchvision or caffe"):
        init_weights(nets["torchvision"], path)
    (tmp_path / "config.json").write_text(json.dumps(dict(config=dict(style="caffe"))))
    with pytest.raises(InputError, match="expected style 'caffe', not 'torchvision'"):
        init_weights(nets["torchvision"], path)


def test_layout_names():
    torchvisions_deeplab = ["backbone.conv1.weight", "classifier.4.bias"]
    assert checkpoint_layout(torchvisions_deeplab)[0] != "semeda"
    assert checkpoint_layout(["conv1.weight", "fc.bias"])[:2] == ("torchvision", "torchvision")


def test_the_scale_of_images_of_a_real_file():
    state = torch.load(real_data("resnet18_imagenet_trunk.pth"), weights_only=True)
    assert .5 < image_scale(state["conv1.weight"], state["bn1.running_var"]) < 8
