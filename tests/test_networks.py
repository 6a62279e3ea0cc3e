import sys

import pytest
import torch
from torch import nn

from semeda.core import InputError
from semeda.networks import NETWORKS, NetworkRecord, build_network, find_network, network_label

MINE = '''
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)
        self.norm = nn.BatchNorm2d(num_classes)
    def forward(self, x): return self.norm(self.conv(x))

class Trunk(nn.Module):
    def __init__(self, num_classes, layers=1, **more):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4))
        self.classifier, self.layers, self.more = nn.Conv2d(4, num_classes, 1), layers, more
    def forward(self, x): return dict(logits=self.classifier(self.backbone(x)))

class Loose(Trunk):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(1)) # in no submodule

class Wrong(nn.Module):
    def __init__(self, num_classes): super().__init__()
    def forward(self, x): return x

class Odd(Wrong):
    def forward(self, x): return [x]

def fails(num_classes): raise RuntimeError("two\\nlines")
def text(num_classes): return "net"
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_nets.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_nets", None)


def test_a_network_of_ones_own(mine):
    net = build_network("mine_nets:Plain", 4, batch_norm="frozen", style="caffe", backbone="resnet18").train()
    assert net(torch.randn(2, 3, 9, 7)).shape == (2, 4, 9, 7)
    assert net.style == "caffe" and net.edge_head is None and len(net.head) == 0
    assert net.net.norm.training and all(p.requires_grad for p in net.backbone.parameters())


def test_a_trunk_of_ones_own(mine):
    net = build_network("mine_nets:Trunk", 4, batch_norm="frozen", layers=3, output_stride=None).train()
    assert net(torch.randn(1, 3, 9, 7)).shape == (1, 4, 9, 7)
    assert net.net.layers == 3 and net.net.more == dict(batch_norm="frozen", style="torchvision")
    assert net.trunk == "net.backbone." and not net.backbone[1].training
    assert [p.shape for p in net.head.parameters()] == [(4, 4, 1, 1), (4,)]


def test_no_parameter_is_left_out_of_training(mine):
    net = build_network("mine_nets:Loose", 4)
    trained = {id(p) for part in (net.backbone, net.head) for p in part.parameters()}
    assert trained == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("name, words", [
    ("mine_nets:fails", "network mine_nets:fails cannot be built for 4 classes: RuntimeError: two lines"),
    ("mine_nets:text", "network mine_nets:text makes a str; expected a torch.nn.Module"),
    ("mine_nets:Nothing", "module mine_nets has no Nothing"),
    ("nowhere:Net", "network 'nowhere:Net' cannot be imported: ModuleNotFoundError"),
    (":Net", "network is ':Net'; expected package.module:Name"),
    ("unet", "network is 'unet'; choose from deeplab_v2, smp.NAME, torchvision.NAME, package.module:Class"),
    ("smp.", "network is 'smp.'; choose from deeplab_v2"),
    ("torchvision.resnet18", "network is 'torchvision.resnet18'; choose from torchvision.deeplabv3_mobilenet"),
])
def test_networks_that_are_refused(mine, name, words):
    with pytest.raises(InputError, match=words) as e:
        build_network(name, 4)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name, words", [
    ("Wrong", "network mine_nets:Wrong returns 3 channels; expected 4, one for each class"),
    ("Odd", "network mine_nets:Odd returns list; expected logits"),
])
def test_outputs_that_are_refused(mine, name, words):
    with pytest.raises(InputError, match=words):
        build_network(f"mine_nets:{name}", 4)(torch.zeros(1, 3, 8, 8))


def test_what_a_network_cannot_have():
    with pytest.raises(InputError, match="style is 'caffe'; expected torchvision for network smp.Unet"):
        build_network("smp.Unet", 4, style="caffe")
    with pytest.raises(InputError, match="network is 'smp.Unet'; expected deeplab_v2 for the edge head of ubernet"):
        build_network("smp.Unet", 4, edge_head=True)


def test_a_registered_network(monkeypatch):
    monkeypatch.delitem(NETWORKS, "one.", raising=False)
    record = NetworkRecord("one.", lambda name, num_classes: nn.Conv2d(3, num_classes, 1), "One")
    NETWORKS.register("one.", record)
    try:
        net = build_network("one.conv", 6, backbone="resnet18")
        assert net(torch.zeros(1, 3, 5, 5)).shape == (1, 6, 5, 5)
        assert find_network("one.conv") is record and network_label("one.conv", "resnet18") == "conv"
        with pytest.raises(InputError, match="smp.NAME, torchvision.NAME, one.NAME"):
            find_network("two")
    finally:
        del NETWORKS["one."]
