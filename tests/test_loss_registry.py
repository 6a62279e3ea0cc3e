"Losses by name: the grammar, what records say, a loss from outside, and several processes."
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semeda.core import InputError
from semeda.edge_iou import EdgeIoULoss
from semeda.edge_net import EdgeNet
from semeda.loss_registry import (
    LOSSES,
    TABLE1,
    LossRecord,
    build_loss,
    check_lambdas,
    default_lambdas,
    has_edge_head,
    loss_across_processes,
    loss_choices,
    loss_label,
    loss_slug,
    loss_terms,
    needs_edge_net,
    parse_loss,
    split_loss,
)
from semeda.losses import PPCELoss, SemedaLoss
from semeda.rivals import AddedModule, LovaszLoss

OWN = """
import torch
from torch import nn
from semeda.loss_registry import LossRecord

class Squared(nn.Module):
    LABEL = "squared error"
    def __init__(self, num_classes, power=2., edge_net=None):
        super().__init__()
        self.num_classes, self.power = num_classes, power
    def forward(self, logits, labels):
        hot = nn.functional.one_hot(labels.clamp(max=self.num_classes - 1).long(), self.num_classes).movedim(-1, 1)
        return (logits.softmax(1) - hot).abs().pow(self.power).mean()

class Broken(nn.Module):
    def __init__(self): raise RuntimeError("no\\nluck")

def function(logits, labels): return logits.sum()
def nothing(): return 3
number = 5
record = LossRecord("mine", Squared, "mine", added=True, terms=("mine",))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module outside the package"
    (tmp_path / "outside_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "outside_losses"
    sys.modules.pop("outside_losses", None)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (2, 9, 7), generator=g)
    labels[torch.rand(labels.shape, generator=g) < .2] = 255
    return torch.randn(2, 4, 9, 7, generator=g), labels


@pytest.mark.parametrize(
    "expression, words",
    [
        (
            "sedema",
            "loss is 'sedema'; choose from ppce, ubernet, ppce_edges, semeda, semeda_per_class, edge_weighted, ",
        ),
        ("smp.Dice", "loss is 'smp.Dice'; choose from smp.DiceLoss"),
        ("semeda+LovaszLoss", "loss is 'semeda+LovaszLoss'; choose from"),
        ("ubernet+smp.DiceLoss", "expected a loss of the class logits alone"),
        ("semeda+", "loss is 'semeda+'; expected a loss on both sides of +"),
        ("+semeda", "expected a loss on both sides of +"),
        ("", "expected a loss on both sides of +"),
        ("smp.DiceLoss+semeda", "expected semeda at the beginning"),
        ("smp.DiceLoss(weight=open('x'))", "expected arguments such as (weight=2)"),
        ("smp.DiceLoss(2)", "expected arguments such as (weight=2)"),
        ("smp.DiceLoss(**{})", "expected arguments such as (weight=2)"),
        ("smp.DiceLoss(weight=1)(2)", "expected arguments such as (weight=2)"),
        ("smp.DiceLoss(weight=2", "choose from"),
        ("smp.DiceLoss weight", "choose from"),
        ("smp.DiceLoss(wieght=2)", "loss smp.DiceLoss has no argument 'wieght'; choose from peer_weight, weight"),
        (7, "loss is 7; expected text"),
        ("no_such_module:Loss", "cannot be imported"),
        ("torch.nn:NoSuchLoss", "has no NoSuchLoss"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(expression, words):
    with pytest.raises(InputError) as e:
        parse_loss(expression)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_split_loss_is_as_it_was():
    assert split_loss("semeda") == ("semeda", "") and split_loss("smp.DiceLoss") == ("ppce", "DiceLoss")
    assert split_loss("semeda+smp.LovaszLoss") == ("semeda", "LovaszLoss")
    assert split_loss("semeda+smp.LovaszLoss+smp.DiceLoss") == ("semeda", "smp.LovaszLoss+smp.DiceLoss")


def test_arguments_and_settings(batch):
    assert build_loss("semeda(norm='l2')", edge_net=EdgeNet(4), norm="l1").norm == "l2"
    assert build_loss("ubernet", lambdas=[5., 0., 0.]).lambda1 == 5
    assert build_loss("ppce", ignore_index=9, lambdas=None).ignore_index == 9
    with pytest.raises(InputError, match="unknown setting 'colour'"):
        build_loss("ppce", colour=1)


def test_peer_weight_and_weight(batch):
    pytest.importorskip("segmentation_models_pytorch")
    values = [
        build_loss(e, peer_weight=3.0)(*batch) for e in ("smp.DiceLoss", "smp.DiceLoss(weight=3)", "ppce+smp.DiceLoss")
    ]
    assert values[0] == values[1] == values[2]
    loss = build_loss("smp.DiceLoss+smp.FocalLoss(weight=.5)")
    total = loss(*batch)
    assert list(loss.terms) == ["ppce", "peer", "peer_2"] and loss_terms("smp.DiceLoss+smp.FocalLoss") == (
        "ppce",
        "semeda",
        "edges",
        "peer",
        "peer_2",
    )
    assert torch.allclose(total, sum(loss.terms.values()))


def test_semeda_per_class_is_semeda_with_that_reduction():
    settings = dict(edge_net=EdgeNet(4), num_classes=4, reduction="channel_mean", relu="before", norm="l1")
    one = build_loss("semeda_per_class", **settings)
    other = build_loss("semeda", **settings | dict(reduction="per_class", lambdas=(0, 1, 0)))
    logits, labels = torch.randn(2, 4, 12, 12), torch.randint(4, (2, 12, 12))
    assert one(logits, labels) == other(logits, labels) and one.over == other.over == "batch"
    assert build_loss("semeda_per_class", **settings | dict(lambdas=(0, .5, 0))).lambdas == (0., .5, 0.)
    assert default_lambdas("semeda_per_class") == default_lambdas("semeda_per_class", paper=True) == [0., 1., 0.]
    given = dict(lambdas=[0., 1., 0.], relu="before", norm="l1")
    assert loss_label("semeda_per_class", **given, reduction="channel_mean") == (
        loss_label("semeda", **given, reduction="per_class"))


def test_what_records_say():
    whole = ("ppce", "semeda", "semeda_per_class", "ubernet", "ppce_edges", "edge_weighted")
    names = [name for name in LOSSES if name not in whole]
    assert all(LOSSES[name].added and LOSSES[name].terms for name in names)
    assert [needs_edge_net(e) for e in ("ppce", "semeda", "ppce_edges+smp.DiceLoss", "smp.DiceLoss")] == [
        False,
        True,
        True,
        False,
    ]
    assert has_edge_head("ubernet") and not has_edge_head("semeda")
    assert all(loss_terms(e)[:4] == ("ppce", "semeda", "edges", "peer") for e in LOSSES)
    assert loss_slug("semeda+smp.LovaszLoss") == "semeda+smp.LovaszLoss"
    assert "smp.NAME" in loss_choices()
    long = loss_slug("ppce+" + "+".join(["smp.DiceLoss"] * 30))
    assert len(long) < 100 and long != loss_slug("ppce+" + "+".join(["smp.DiceLoss"] * 31))


def test_labels_of_tables():
    assert loss_label("smp.LovaszLoss", lambdas=[1., 0., 0.], relu="before") == "PPCE + Lovasz"
    assert (
        loss_label("semeda+smp.DiceLoss", lambdas=[0.0, 0.25, 0.0], relu="before", norm="l2", reduction="relative")
        == "SEMEDA (0, 0.25, 0) before ReLU, l2, relative + Dice"
    )
    assert loss_label("edge_weighted", lambdas=[3., 0., 0.]) == "edge-weighted PPCE 3"
    assert loss_label("smp.DiceLoss(weight=.5)") == "PPCE + Dice (weight 0.5)"


def test_lambdas():
    assert default_lambdas("ubernet", paper=True) == [1.0, 0.0, 0.0] and default_lambdas("semeda", paper=True) == [
        0.0,
        1.0,
        0.0,
    ]
    check_lambdas("ppce", [1., 1., 1.])
    with pytest.raises(InputError, match="expected lambda1,0,0 for ppce_edges"):
        check_lambdas("ppce_edges", [1., 1., 0.])


@pytest.mark.parametrize("expression, lambdas, words", [
    ("ubernet", (0, 1, 0), "expected lambda1,0,0 for ubernet"), ("edge_weighted", (0, 0, 1), "expected lambda1,0,0"),
    ("lovasz", (0, 5, 0), "which lovasz does not take"), ("semeda", 2., "lambdas is 2.0; expected three weights"),
    ("ubernet", 2., "lambdas is 2.0; expected three weights"), ("semeda", (1, 2), "expected three weights")])
def test_weights_of_layers_that_a_loss_does_not_have_are_refused(expression, lambdas, words):
    "They changed nothing without a word"
    with pytest.raises(InputError, match=words):
        build_loss(expression, lambdas=lambdas, num_classes=7, edge_net="voc")


def test_table_1():
    assert list(TABLE1)[10] == "table1_11" and TABLE1["table1_11"] == dict(
        loss="semeda", lambdas=(0.0, 1.0, 0.0), relu="before", reported=66.6
    )


def test_a_whole_loss_from_outside(own, batch):
    expression = f"{own}:Squared(power=1.)"
    loss = build_loss(expression, num_classes=4)
    value = loss(*batch)
    assert loss.terms == {"Squared": value} and loss.over == "batch" and needs_edge_net(expression)
    assert loss_terms(expression)[4:] == ("Squared",) and loss_label(expression) == "squared error (power 1.0)"
    assert loss_slug(expression) == "outside_losses-Squared-power1." and loss.loss.power == 1


def test_an_added_loss_from_outside(own, batch):
    expression = f"semeda+{own}:Squared(weight=3)"
    loss = build_loss(expression, num_classes=4, edge_net=EdgeNet(4))
    assert list((loss(*batch), loss.terms)[1]) == ["ppce", "semeda", "Squared"]
    alone = build_loss(f"{own}:Squared", num_classes=4)
    assert torch.allclose(loss.terms["Squared"], 3 * alone(*batch))
    assert parse_loss(f"{own}:record").parts[1].record.label == "mine"


@pytest.mark.parametrize(
    "name, words",
    [
        ("Broken", "cannot be built: RuntimeError: no luck"),
        ("nothing", "gave a int; expected a torch.nn.Module"),
        ("number", "is a int; expected a torch.nn.Module class"),
        ("Squared", "cannot be built: TypeError"),
    ],
)
def test_a_faulty_loss_from_outside(own, name, words):
    with pytest.raises(InputError) as e:
        build_loss(f"{own}:{name}")
    assert words in str(e.value) and "\n" not in str(e.value)


def test_registering(monkeypatch, batch):
    monkeypatch.setattr("semeda.loss_registry.LOSSES", type(LOSSES)("loss"))
    from semeda import loss_registry
    loss_registry.LOSSES.update(LOSSES)
    loss_registry.LOSSES.register("plain", LossRecord("plain", nn.CrossEntropyLoss, "plain", added=True))
    loss = build_loss("plain(weight=2.)")
    assert torch.allclose(loss(*batch), 3 * F.cross_entropy(*batch, ignore_index=255)) and loss_terms("plain")
    with pytest.raises(InputError, match="registered already"):
        loss_registry.LOSSES.register("semeda", LossRecord("semeda", nn.CrossEntropyLoss, "plain"))


ACROSS = (
    *LOSSES,
    "semeda(reduction='relative')",
    "semeda(reduction='per_class')",
    "ppce(weight=(1, 2, 3, 4))",
    "semeda+torch.nn:CrossEntropyLoss",
)


def one_of_two(rank, folder, state, logits, labels):
    "One process of two: its image, through DistributedDataParallel, with every loss"
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = EdgeNet(4)
    net.load_state_dict(state)
    found = {}
    for expression in ACROSS:
        head = nn.Conv2d(4, 4, 1, bias=False)
        head.weight.data = torch.eye(4)[:, :, None, None]
        model = nn.parallel.DistributedDataParallel(nn.Sequential(head, nn.Tanh()))
        loss = build_loss(expression, edge_net=net, num_classes=4)
        out = model(logits[rank:rank + 1])
        value = loss_across_processes(
            loss, (out, out[:, :2]) if has_edge_head(expression) else out, labels[rank : rank + 1]
        )
        value.backward()
        found[expression] = head.weight.grad, value.detach(), loss.terms
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(batch, tmp_path):
    logits, labels = (x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in batch)
    labels[0, 6:] = 255 # the parts count differently
    torch.manual_seed(0)
    net = EdgeNet(4)
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path), net.state_dict(), logits, labels), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for expression in ACROSS:
        weight = torch.eye(4)[:, :, None, None].requires_grad_()
        loss, out = build_loss(expression, edge_net=net, num_classes=4), F.conv2d(logits, weight).tanh()
        value = loss((out, out[:, :2]) if has_edge_head(expression) else out, labels)
        gradient, = torch.autograd.grad(value, weight)
        grads, values, terms = zip(*(part[expression] for part in found))
        assert torch.equal(*grads) and torch.allclose(grads[0], gradient, atol=1e-6), expression
        assert torch.allclose(sum(values) / 2, value, rtol=1e-5), expression
        for name, term in loss.terms.items() if expression != "edge_weighted" else (): # whose ppce has other weights
            assert torch.allclose((terms[0][name] + terms[1][name]) / 2, term, rtol=1e-5), (expression, name)


def unlike_batches(rank, folder, shapes, dtypes):
    "One process of two, whose batches have another shape or dtype: what each of them is told"
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loss, (height, width) = build_loss("lovasz"), shapes[rank]
    labels = torch.zeros(1, height, width, dtype=dtypes[rank])
    try:
        told = float(loss_across_processes(loss, torch.zeros(1, 3, height, width), labels))
    except InputError as e:
        told = str(e)
    torch.save(told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shapes, dtypes, told", [
    (((6, 8), (8, 6)), (torch.long, torch.long), "(1, 3, 6, 8) float32, (1, 3, 8, 6) float32"),
    (((6, 8), (6, 8)), (torch.uint8, torch.long), "(1, 6, 8) uint8, (1, 6, 8) int64"),
    (((6, 8), (6, 8)), (torch.int16, torch.int16), ""),
])
def test_processes_with_unlike_batches_are_told(tmp_path, shapes, dtypes, told):
    torch.multiprocessing.spawn(unlike_batches, (str(tmp_path), shapes, dtypes), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0] == found[1] and (told in str(found[0]) if told else isinstance(found[0], float))


def test_a_registered_loss_is_of_the_batch_unless_it_says_that_it_is_a_mean_over_pixels():
    assert LossRecord("mine", nn.CrossEntropyLoss, "mine").over == "batch"
    of_pixels = {name for name, record in LOSSES.items() if record.over == "pixels"}
    assert of_pixels >= {"ppce", "ubernet", "ppce_edges", "semeda", "edge_weighted"}
    assert not of_pixels & {"lovasz", "edge_iou", "smp.DiceLoss"}


def test_semeda_from_a_file_has_the_settings_of_the_file(tmp_path):
    torch.manual_seed(0)
    settings = dict(lambdas=(0, 1, 0), relu="after", norm="l2", reduction="per_class", label_smoothing=.1)
    saved = SemedaLoss("camvid", **settings)
    saved.save(tmp_path / "loss.safetensors")
    logits, labels = torch.randn(1, 11, 12, 12), torch.randint(11, (1, 12, 12))
    assert build_loss("semeda", edge_net=tmp_path / "loss.safetensors")(logits, labels) == saved(logits, labels)
    plain = build_loss("semeda", edge_net="camvid")
    assert (plain.lambdas, plain.relu, plain.norm) == (SemedaLoss("camvid").lambdas, "before", "l1")


def test_torchs_own_loss_takes_labels_of_uint8():
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))
    for expression in ("torch.nn:CrossEntropyLoss(ignore_index=255)+lovasz",
                       "ppce+torch.nn:CrossEntropyLoss(ignore_index=255)"):
        loss = build_loss(expression)
        assert loss(logits, labels.to(torch.uint8)) == loss(logits, labels)


def test_an_own_class_that_forgets_its_void_has_that_of_the_settings():
    assert build_loss("torch.nn:Softmax", ignore_index=7).ignore_index == 7


def test_torchs_own_loss_is_not_given_the_reduction_of_a_run():
    settings = dict(num_classes=3, edge_net=None, lambdas=[0, 1, 0], relu="before", norm="l1", reduction="channel_mean")
    loss = build_loss("torch.nn:CrossEntropyLoss(ignore_index=255)", **settings)
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))
    assert loss(logits, labels) == nn.functional.cross_entropy(logits, labels)


def test_losses_that_are_added_have_one_void(batch):
    logits, labels = batch
    for name in ("lovasz", "edge_iou", "smp.DiceLoss", "rmi"):
        loss = build_loss(f"{name}(ignore_index=0)")
        loss(logits, labels.clamp(max=3))
        torch.testing.assert_close(loss.terms["ppce"], F.cross_entropy(logits, labels.clamp(max=3), ignore_index=0))
    for make in (lambda: build_loss("lovasz(ignore_index=0)+edge_iou"), lambda: LovaszLoss(base=PPCELoss(0)),
                 lambda: EdgeIoULoss(base=nn.CrossEntropyLoss(ignore_index=0)),
                 lambda: AddedModule(nn.CrossEntropyLoss(ignore_index=0), "plain", 1., PPCELoss()),
                 lambda: EdgeIoULoss(base=LovaszLoss(ignore_index=0))):
        with pytest.raises(InputError, match="ignore_index is 255, but 0 of the .*Loss beside it; expected one"):
            make()
    LovaszLoss(base=nn.CrossEntropyLoss()) # torch's number for none
    build_loss("torch.nn:CrossEntropyLoss(ignore_index=3)+lovasz(ignore_index=3)")


def test_arguments_given_twice():
    with pytest.raises(InputError, match="expected weight once"):
        build_loss("lovasz(weight=1, weight=5)")


def test_a_weight_with_two_meanings(tmp_path, monkeypatch):
    (tmp_path / "own_weight.py").write_text(
        "from torch import nn\n\n\nclass Own(nn.Module):\n    def __init__(self, weight=.1):\n"
        "        super().__init__()\n        self.weight = weight\n\n"
        "    def forward(self, logits, labels):\n        return self.weight * logits.mean()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert build_loss("own_weight:Own(weight=.5)+lovasz").base.loss.weight == .5
    assert build_loss("lovasz+own_weight:Own").loss.weight == .1
    with pytest.raises(InputError, match="loss own_weight:Own has a weight of its own"):
        build_loss("lovasz+own_weight:Own(weight=.5)")
