import pickle

import pytest
import torch
import torchvision

from semeda.deeplab import DeepLabV2, init_weights, resnet
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


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("write, words", [
    (lambda p: torch.save(torchvision.models.resnet50().state_dict(), p), "of shape"),
    (lambda p: torch.save({"a": torch.zeros(1)}, p), "holds no ResNet weights by torchvision's names; its first keys are a"),
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
