"""What does each loss cost, and the SEMEDA loss beside the equation written out?

    python -m benchmarks.loss [--device cuda]

Forward and backward of one term, without the cross-entropy it is added to, on logits (B, C, H, W) and labels
of smooth regions with some void. Ours is `semeda_by_image`, the SEMEDA term of `SemedaLoss`; beside it eq. 6 as
PyTorch runs it when written out (`semeda`), the same with all three layers computed and the third left out of
the sum, PPCE, and the term of every registered loss that is added to another, with its default settings. The
three forms of SEMEDA are checked to agree before anything is timed, in double precision: in single the gradient
of |x| flips its sign where rounding moves x across 0.

The floor is the longer of two times, at rates measured in the same process: the multiply-adds of the
convolutions that nobody can leave out (of the prediction, forward and back; the label's come from a
table) at a large matrix product's rate, and reading logits and labels and writing the gradient once at
a copy's. Extra memory is the most that live tensors hold beyond logits and labels, the gradient included.
Writes results/bench/loss-DEVICE.json.
"""
import sys
from functools import partial

import torch
import torch.nn.functional as F

from semeda.core import InputError
from semeda.edge_iou import edge_iou
from semeda.edge_net import embeddings, one_hot
from semeda.edge_net_files import shipped_edge_net
from semeda.loss_registry import LOSSES, build_loss
from semeda.losses import ppce, semeda, semeda_by_image

from .timing import MIB, VOID, machine_rates, parse, parser, peak_extra, regions, rows_of, show, take_turns, write

NETS = {21: "voc", 11: "camvid"}
OURS = "SEMEDA"


def all_layers(logits, labels, weights):
    "Eq. 6 for lambda = (0, 1, 0), with psi of all three layers computed"
    labelled = (labels != VOID).unsqueeze(1)
    with torch.no_grad():
        target = embeddings(one_hot(labels, logits.shape[1], dtype=logits.dtype), weights)
    difference = embeddings(logits.softmax(dim=1) * labelled, weights)[1] - target[1]
    return (difference.abs() * labelled).sum() / labelled.sum() / difference.shape[1]


def added_terms():
    "The term of each registered loss that is added to another, as a function of logits and labels"
    found = {"edge_iou": edge_iou} # at three reaches
    for name, record in LOSSES.items():
        if not record.added or name in found:
            continue
        try:
            found[name] = build_loss(name).compute
        except InputError:  # segmentation-models-pytorch is not installed
            continue
    return found


def losses(classes, device, dtype=torch.float32):
    "Functions of logits and labels"
    net = shipped_edge_net(NETS[classes])
    weights = [tuple(t.detach().to(device, dtype) for t in pair) for pair in net.weights]
    forms = {OURS: semeda_by_image, "SEMEDA, eq. 6 written out": semeda, "SEMEDA, eq. 6, all layers": all_layers}
    ours = {name: partial(form, weights=weights) for name, form in forms.items()}
    return {"PPCE": ppce} | ours | added_terms()


def forward_backward(loss, logits, labels):
    def way():
        torch.autograd.grad(loss(logits, labels), logits)
    return way


def check(found, logits, labels, close=1e-9):
    "All forms of SEMEDA agree in value and gradient, in double precision; PPCE is PyTorch's"
    logits = logits.detach().double().requires_grad_()

    def value_and_gradient(loss):
        value = loss(logits, labels)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    value, gradient = value_and_gradient(found[OURS])
    for name in found:
        if not name.startswith(OURS):
            continue
        other, its = value_and_gradient(found[name])
        same = abs(value - other) <= close * value and (gradient - its).norm() <= close * gradient.norm()
        assert same, f"{name} differs from {OURS}"
    assert torch.allclose(found["PPCE"](logits, labels), F.cross_entropy(logits, labels, ignore_index=VOID))


def floors(names, logits, rates):
    "Milliseconds for each loss"
    batch, classes, height, width = logits.shape
    pixels = batch * height * width
    moved = 1000 * pixels * (2 * 4 * classes + 8) / rates["bytes_per_second"]
    multiplied = 1000 * pixels * 2 * 9 * (classes * 16 + 16 * 32) / rates["macs_per_second"]
    return {name: max(moved, multiplied) if name.startswith(OURS) else moved for name in names}


def main(argv=None):
    args = parse(parser("loss", __doc__, 40, 20.), argv)
    rates, rows = machine_rates(args), []
    shapes = [(1, 21, 33), (2, 11, 24)] if args.quick else [(6 if args.device == "cuda" else 2, 21, 321), (6, 11, 96)]
    for batch, classes, side in shapes:
        logits = (3 * torch.randn(batch, classes, side, side, device=args.device)).requires_grad_()
        labels = regions((batch, side, side), classes, void=True).long().to(args.device)
        found = losses(classes, args.device)
        check(losses(classes, args.device, torch.float64), logits, labels)
        ways = {name: forward_backward(loss, logits, labels) for name, loss in found.items()}
        extra = {name: peak_extra(way, args.device) / MIB for name, way in ways.items()}
        title = f"{batch}x{classes}x{side}x{side}, float32"
        rows += rows_of(title, take_turns(ways, args), OURS, floors(ways, logits, rates), extra_mib=extra)
    show(f"loss, forward and backward, {args.device}, {args.threads} threads", rows)
    write("loss", args, rows, ["segmentation-models-pytorch"], rates=rates, shapes=shapes)
    return 0


if __name__ == "__main__": sys.exit(main())
