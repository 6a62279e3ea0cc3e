"""Parameters: a loss, a dataset, a network and a metric from outside of the package, and files of parameters."""
import csv
import json

import pytest
import torch

from semeda.config import Config, import_plugins, resolve, unused_settings
from semeda.core import InputError
from semeda.metrics import METRICS
from semeda.run import run_folder
from semeda.trainer import main

OWN = '''
import torch
from torch import nn

from semeda.counts import CountMetric, confusion
from semeda.data import scenes
from semeda.loss_registry import LOSSES, LossRecord
from semeda.metrics import METRICS, MetricRecord
from semeda.networks import NETWORKS, NetworkRecord

class Brier(nn.Module):
    "Squared difference of probabilities and labels"
    def __init__(self, num_classes, power=2):
        super().__init__()
        self.num_classes, self.power = num_classes, power
    def forward(self, logits, labels):
        kept = labels != 255
        target = nn.functional.one_hot(labels * kept, self.num_classes).movedim(-1, 1)
        return (((logits.softmax(1) - target).abs() ** self.power).sum(1) * kept).sum() / kept.sum().clamp(min=1)

class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Conv2d(3, num_classes, 5, padding=2)
    def forward(self, images): return self.layers(images)

def few(split): return scenes(split, dict(train=4, val=2)[split], size=32)

class Accuracy(CountMetric):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes, self.shapes = num_classes, dict(accuracy=())
        self._add_counts("counts", num_classes, num_classes)
    def update(self, predictions, labels): self.counts += confusion(predictions, labels, self.num_classes)
    def compute(self): return dict(accuracy=self.counts.diagonal().double().sum() / self.counts.sum())

if "accuracy" not in METRICS:
    METRICS.register("accuracy", MetricRecord("accuracy", Accuracy, "pixel accuracy"))
    LOSSES.register("brier", LossRecord("brier", Brier, "Brier score", added=True, terms=("brier",), over="batch"))
    NETWORKS.register("small", NetworkRecord("small", Small, "one convolution"))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module outside of the package, imported by name"
    (tmp_path / "my_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_parts"
    from semeda.loss_registry import LOSSES
    from semeda.networks import NETWORKS
    for registry, name in ((METRICS, "accuracy"), (LOSSES, "brier"), (NETWORKS, "small")):
        registry.pop(name, None)
    import sys
    sys.modules.pop("my_parts", None)


ARGS = ["--iterations=2", "--batch-size=2", "--crop=16", "--log-every=1", "--val-every=1", "--max-width=2"]


def test_own_parts_by_one_name_each(own, tmp_path, capsys):
    runs = tmp_path / "runs"
    args = [*ARGS, f"--runs={runs}", "--plugins=my_parts", "--dataset=my_parts:few"]
    assert main([*args, "--loss=my_parts:Brier(power=1)", "--network=my_parts:Small", "--name=dotted"]) == 0
    assert main([*args, "--loss=ppce+brier(weight=.5)", "--network=small", "--name=registered"]) == 0
    for name, term in (("dotted", "Brier"), ("registered", "brier")):
        metrics = json.loads((runs / name / "metrics.json").read_text())
        assert 0 < metrics["accuracy"] < 1 and metrics["last_losses"][term] > 0
        with open(runs / name / "history.csv") as file:
            rows = list(csv.DictReader(file))
        assert float(rows[-1][term]) > 0 and float(rows[-1]["val_accuracy"]) == metrics["accuracy"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    help = " ".join(capsys.readouterr().out.split())
    assert "brier" in help and "small" in help and "package.module:function" in help


@pytest.mark.parametrize("args, words", [
    (["--loss=nowhere:MyLoss"], "loss 'nowhere:MyLoss' cannot be imported: ModuleNotFoundError"),
    (["--loss=my_parts:MyLoss"], "module my_parts has no MyLoss"),
    (["--network=my_parts:Tiny"], "module my_parts has no Tiny"),
    (["--dataset=my_parts:none"], "module my_parts has no none"),
    (["--loss=my_parts:Brier(size=1)"], "has no argument 'size'; choose from num_classes, power"),
])
def test_what_is_wrong_with_them_is_one_line(own, tmp_path, capsys, args, words):
    assert main([*args, f"--runs={tmp_path / 'runs'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("semeda-train: ") and words in line and not (tmp_path / "runs").exists()


def test_plugins_that_fail(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="module 'broken_plugin' cannot be imported: ZeroDivisionError: division"):
        import_plugins("broken_plugin")


def test_run_folder_names(tmp_path):
    config = resolve(loss="smp.LovaszLoss+edge_iou(weight=2, reaches=(2, 4))", runs=str(tmp_path))[0]
    assert run_folder(config).name == "scenes-smp.LovaszLoss+edge_iou-weight2-reaches-2-4-s0"
    assert run_folder(Config(name="mine", runs=str(tmp_path))) == tmp_path / "mine"


def test_version(capsys):
    import semeda
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and semeda.__version__ in capsys.readouterr().out


class Weighed(torch.nn.Module):
    "A loss of one's own with two weights"
    def __init__(self, weight=1., peer_weight=1.):
        super().__init__()


@pytest.mark.parametrize("given, told", [
    (dict(loss="lovasz", reduction="per_class"), ["reduction is 'per_class', which changes nothing: loss lovasz does"]),
    (dict(loss="ppce", relu="after", peer_weight=2), ["peer_weight is 2.0, which", "relu is 'after', which"]),
    (dict(loss="semeda+smp.DiceLoss", peer_weight=2, norm="l2", reduction="relative"), []),
    (dict(network="smp.Unet", layers=4, backbone="resnet50"), ["layers is 4, which changes nothing: network smp.Unet"]),
    (dict(network="torchvision.fcn_resnet50", backbone="resnet50"), ["backbone is 'resnet50', which"]),
    (dict(network="torchvision.fcn_resnet50", backbone="resnet50", init_weights="imagenet"), []),
    (dict(network="semeda.deeplab:DeepLabV2", output_stride=16), []),
    (dict(network="deeplab_v2", output_stride=16, layers=4), []),
    (dict(loss="lovasz", edge_steps=5), ["edge_steps is 5, which changes nothing: loss lovasz does not take it"]),
    (dict(loss="ppce", edge_net="voc"), ["edge_net is 'voc', which changes nothing: loss ppce does not take it"]),
    (dict(edge_net="voc", edge_sigma=2), ["edge_sigma is 2.0, which changes nothing: edge_net voc does not take it"]),
    (dict(edge_net="voc"), []), (dict(edge_steps=5), []),
    (dict(loss="ppce", lambdas="0,1,0"), ["lambdas is [0.0, 1.0, 0.0], which changes nothing: loss ppce does"]),
    (dict(loss="ppce", lambdas="0,0,0"), []), (dict(row="table1_01"), []), (dict(loss="semeda", lambdas="0,1,0"), []),
    (dict(loss="smp.DiceLoss(weight=.3)", peer_weight=2), ["peer_weight is 2.0, which changes nothing: loss smp.Dice"]),
    (dict(loss="smp.DiceLoss(weight=.3)+smp.FocalLoss", peer_weight=2), []),
    (dict(loss="tests.test_config:Weighed(weight=2)", peer_weight=2), []),
    (dict(network="smp.Unet", upsampling="stretched"), ["upsampling is 'stretched', which changes nothing"]),
    (dict(loss="torch.nn:CrossEntropyLoss", reduction="relative"), ["reduction is 'relative', which changes nothing"]),
])
def test_settings_that_change_nothing_are_told(given, told):
    lines = unused_settings(resolve(**given)[0])
    assert len(lines) == len(told) and all(line.startswith(begin) for line, begin in zip(lines, told))


def test_settings_that_change_nothing_are_told_on_the_command_line(tmp_path, capsys):
    given = ["--loss=lovasz", "--norm=l2", "--iterations=1", f"--runs={tmp_path}", "--crop=32", "--batch-size=2"]
    assert main([*given, "--max-width=2"]) == 0
    assert "norm is 'l2', which changes nothing: loss lovasz does not take it\n" in capsys.readouterr().err


@pytest.mark.parametrize("name, value", [("lambdas", [5, 0, 0]), ("relu", "after"), ("loss", "ppce")])
def test_a_row_is_not_run_with_other_settings(name, value):
    assert resolve(row="table1_11", lambdas=resolve(row="table1_11")[0].lambdas)[0].row == "table1_11"
    with pytest.raises(InputError, match=f"row is table1_11 but {name} is .*; expected .* or no row"):
        resolve(row="table1_11", **{name: value})
