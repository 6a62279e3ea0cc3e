"""What does each registered loss cost, alone and as part of a training step?

    python -m benchmarks.losses [--device cuda] [--losses smp.LovaszLoss+edge_iou] [--backbones resnet18]

Forward and backward of each loss on random logits of 21 classes, and a training step with it of DeepLab-v2 as in the
paper (`benchmarks.step`), at 321x321. All losses of `semeda.loss_registry.LOSSES`, each as `-p loss NAME` builds it
(one that is added stands on PPCE), and those of --losses. Ratios are to PPCE. Losses that need an edge head, or a
package that is not installed, are left out with the reason. Writes results/bench/losses-DEVICE.json.

On a CPU, what a step takes without its loss is the same for every loss and scatters by more than most losses take. So
it is the median over all steps of the case, and the loss is timed within each step: forward, and back to the logits.
On a GPU the two overlap, and the step is timed as a whole.
"""
import statistics
import sys

import torch

from semeda.core import InputError
from semeda.edge_net import shipped_edge_net
from semeda.loss_registry import LOSSES, build_loss, default_lambdas, has_edge_head, loss_label

from .step import CLASSES, PPCE, Step
from .timing import MIB, milliseconds, parse, parser, peak_extra, regions, rows_of, show, take_turns, write

MORE = ("smp.LovaszLoss+edge_iou", "smp.LovaszLoss+edge_iou(false_weight=2)",
        "smp.LovaszLoss+trimap_lovasz", # combinations that the study of losses has
        "lovasz+trimap_lovasz") # what one begins with
BACKBONES = ("resnet18", "resnet101")


def registered(more):
    "Label -> loss, of those that can be built for logits alone; label -> why not, of the others"
    found, missing = {}, {}
    for expression in [*LOSSES, *more]:
        label = loss_label(expression)
        if has_edge_head(expression):
            missing[label] = "needs an edge head"
            continue
        settings = dict(num_classes=CLASSES, edge_net=shipped_edge_net("voc"), lambdas=default_lambdas(expression))
        try:
            found[label] = build_loss(expression, **settings)
        except (ImportError, InputError) as error:
            missing[label] = str(error)
    return found, missing


def measure(case, ways, missing, args, parts=None, around=()):
    """Rows of one case, with those that were left out

    With `parts`, ways that take the time of the loss alone and add that of what is around it, in seconds, to the list
    `around`, these are timed; memory is that of the ways as they are."""
    times = take_turns(parts or ways, args, warm=1)
    if parts:
        rest = 1000 * statistics.median(around)
        times = {name: [rest + of_loss for of_loss in mine] for name, mine in times.items()}
    extra = {name: peak_extra(way, args.device) / MIB for name, way in ways.items()}
    rows = rows_of(case, times, PPCE, extra_mib=extra)
    return rows + [dict(case=case, way=name, ms=None, note=note) for name, note in missing.items()]


def alone(losses, batch, side, device):
    "Forward and backward of each loss"
    logits = (3 * torch.randn(batch, CLASSES, side, side, device=device)).requires_grad_()
    labels = regions((batch, side, side), CLASSES, void=True).long().to(device)
    def way(loss):
        return lambda: torch.autograd.grad(loss(logits, labels), logits)
    return {name: way(loss.to(device)) for name, loss in losses.items()}


def parted(step, around):
    "Steps that return the seconds of their loss, and add those of the rest to the list `around`"
    def way(loss):
        def run():
            found = {}
            def of_loss():
                found["back"], = torch.autograd.grad(loss(found["leaf"], step.labels), found["leaf"])
            def forward():
                found["logits"] = step.logits(step.net)
                found["leaf"] = found["logits"].detach().requires_grad_()
            def back():
                found["logits"].backward(found["back"])
                step.optimizer.step()
                step.optimizer.zero_grad()
            first, own, last = (milliseconds(part, step.device) / 1000 for part in (forward, of_loss, back))
            around.append(first + last)
            return own
        return run
    return {name: way(loss) for name, loss in step.losses.items()}


def main(argv=None):
    found = parser("losses", __doc__, 12, 60.)
    found.add_argument("--losses", nargs="*", default=MORE, help=f"further expressions [{' '.join(MORE)}]")
    found.add_argument("--backbones", nargs="*", default=BACKBONES, help=f"[{' '.join(BACKBONES)}]")
    args = parse(found, argv)
    batch, side = 6 if args.device == "cuda" else 1, 33 if args.quick else 321
    losses, missing = registered(args.losses)
    rows = measure(f"alone, {batch}x{CLASSES}x{side}x{side}", alone(losses, batch, side, args.device), missing, args)
    for backbone in args.backbones[:1] if args.quick else args.backbones:
        step = Step(backbone, "float32", batch, side, args.device, losses)
        case = f"step, {backbone}, {batch}x3x{side}x{side}, float32"
        around = []
        parts = parted(step, around) if args.device == "cpu" else None
        rows += measure(case, step.ways(False), missing, args, parts, around)
        step.check_finite()
    show(f"losses, {args.device}, {args.threads} threads", rows)
    write("losses", args, rows, ["segmentation-models-pytorch"], batch=batch, side=side, classes=CLASSES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
