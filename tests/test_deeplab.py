import pytest
import torch
import torchvision

from semeda.core import InputError
from semeda.deeplab import DeepLabV2, resnet


def geometry(net):
    "Names and settings of a network's convolutions"
    convs = ((name, m) for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d))
    return [(name, m.weight.shape, m.stride, m.padding, m.dilation) for name, m in convs]


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilation_is_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(replace_stride_with_dilation=[False, True, True])
        ours = resnet(name, 8)
    assert geometry(ours) == geometry(theirs) and ours.maxpool.ceil_mode == theirs.maxpool.ceil_mode


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_output_stride(stride):
    net, x = resnet("resnet18", stride).eval(), torch.randn(1, 3, 128, 96)
    assert net(x).shape[-2:] == (128 // stride, 96 // stride)


@pytest.mark.parametrize("settings, words", [
    (dict(name="vgg16"), "backbone is 'vgg16'; choose from resnet18, resnet50, resnet101"),
    (dict(output_stride=6), "output_stride is 6; expected 4, 8, 16 or 32"),
    (dict(layers=1), "layers is 1; expected 2, 3 or 4"),
    (dict(layers=2, output_stride=16), "output_stride is 16 and layers is 2; expected at most 8"),
    (dict(layers=3, output_stride=32), "output_stride is 32 and layers is 3; expected at most 16"),
    (dict(style="keras"), "style is 'keras'; choose from torchvision, caffe"),
    (dict(name="resnet18", style="caffe"), "style is 'caffe' but backbone is 'resnet18'"),
])
def test_resnets_that_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        resnet(**settings)


@pytest.mark.parametrize("mode, trained", [("frozen", False), ("affine", True), ("trained", True)])
def test_batch_norm(mode, trained):
    net = DeepLabV2(3, "resnet18", layers=2, batch_norm=mode).train()
    mean, scale = net.backbone.bn1.running_mean.clone(), net.backbone.bn1.weight
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert torch.equal(mean, net.backbone.bn1.running_mean) == (mode != "trained")
    assert (scale.grad is not None) == trained


def test_pooling_rounds_up_in_caffe_style():
    with torch.device("meta"):
        nets = {style: resnet("resnet50", 8, style=style) for style in ("torchvision", "caffe")}
        sizes = {style: tuple(net(torch.empty(1, 3, 512, 1024)).shape[-2:]) for style, net in nets.items()}
    assert sizes == {"torchvision": (64, 128), "caffe": (65, 129)}


def test_edge_head_is_for_training_alone():
    net, x = DeepLabV2(3, "resnet18", layers=2, edge_head=True), torch.randn(1, 3, 32, 40)
    logits, edges = net.train()(x)
    assert logits.shape == (1, 3, 32, 40) and edges.shape == (1, 2, 32, 40)
    assert net.eval()(x).shape == (1, 3, 32, 40)


@pytest.mark.parametrize("backbone, layers, channels", [("resnet18", 3, 256), ("resnet50", 4, 2048)])
def test_the_head_reads_what_the_last_block_writes(backbone, layers, channels):
    with torch.device("meta"):
        net = DeepLabV2(3, backbone, layers=layers)
        assert net(torch.empty(1, 3, 33, 33)).shape == (1, 3, 33, 33)
    first = [m for name, m in net.named_modules() if name.startswith("head") and isinstance(m, torch.nn.Conv2d)]
    assert first and all(conv.in_channels == channels for conv in first)


@pytest.mark.parametrize("backbone, style, stride, layers", [
    ("resnet18", "torchvision", 8, 2), ("resnet18", "torchvision", 4, 3), ("resnet18", "torchvision", 16, 3),
    ("resnet50", "caffe", 8, 3)])
@pytest.mark.parametrize("size", [(32, 32), (33, 41), (45, 60), (31, 29)])
def test_logits_lie_at_the_pixels_that_they_were_computed_around(backbone, style, stride, layers, size):
    "A pixel at a multiple of the stride has the logits of that feature alone; what is between is between"
    net = DeepLabV2(3, backbone, stride, layers, style=style).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        features, logits = net.head(net.backbone(x)), net(x)
    found = logits[..., ::stride, ::stride]
    assert logits.shape[-2:] == size and net.stride == stride
    assert torch.allclose(found, features[..., :found.shape[-2], :found.shape[-1]], atol=1e-5)
    assert logits.max() <= features.max() + 1e-5 and logits.min() >= features.min() - 1e-5


def test_a_photograph_is_segmented_as_a_part_of_a_larger_one_is():
    "Its last rows are no multiple of the stride, which moves no other row"
    net = DeepLabV2(3, "resnet18", 8, 2).eval()
    net.backbone = torch.nn.AvgPool2d(8, ceil_mode=True) # looks no further than its own pixels
    net.head = torch.nn.Identity()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole, part = net(x), net(x[..., :60, :]) # the last feature of the part is of 4 rows
    assert torch.allclose(whole[..., :48, :], part[..., :48, :], atol=1e-6)
    stretched = DeepLabV2(3, "resnet18", 8, 2, upsampling="stretched").eval()
    stretched.backbone, stretched.head = net.backbone, net.head
    with torch.no_grad():
        assert (stretched(x)[..., :48, :] - stretched(x[..., :60, :])[..., :48, :]).abs().max() > .01
    with pytest.raises(InputError, match="upsampling is 'centred'; choose from aligned, stretched"):
        DeepLabV2(3, "resnet18", upsampling="centred")
