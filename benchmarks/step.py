"""What does SEMEDA add to a training step?

    python -m benchmarks.step [--device cuda] [--backbones resnet18] [--precisions float32 bfloat16] [--compile]

Forward, loss, backward and SGD step of DeepLab-v2 as in the paper (21 classes, output stride 8, four layers, frozen
batch-norm, random weights) on one random batch of 321x321: with PPCE, and with PPCE + SEMEDA (`SemedaLoss`) on the same network.
bfloat16 is autocast around the network; the losses compute in float32. With --compile, also network and loss
through torch.compile, which takes a minute each. On a GPU the batch is 6, the paper's, both precisions are
measured, the compiled steps too unless --no-compile is given. Extra memory is the most that live tensors hold
during a step beyond network, batch and momentum.

The floor is the multiply-adds of the network's convolutions, forward and back, at the rate of a large matrix
product of the same dtype in the same process. Writes results/bench/step-DEVICE.json.
"""
import argparse
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from semeda.deeplab import BACKBONES, DeepLabV2
from semeda.edge_net import shipped_edge_net
from semeda.losses import PPCELoss, SemedaLoss

from .timing import MIB, machine_rates, parse, parser, peak_extra, regions, rows_of, show, take_turns, write

CLASSES = 21
PRECISIONS = dict(float32=torch.float32, bfloat16=torch.bfloat16)
PPCE, SEMEDA = "PPCE", "PPCE + SEMEDA"


class Step:
    "Training steps of one network on one batch"
    def __init__(self, backbone, precision, batch, side, device):
        torch.manual_seed(0)
        style = "torchvision" if backbone == "resnet18" else "caffe"
        self.net = DeepLabV2(CLASSES, backbone, style=style).to(device).train()
        self.optimizer = torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=5e-4, momentum=.9, weight_decay=5e-4)
        self.images, self.labels = torch.randn(batch, 3, side, side, device=device), regions((batch, side, side), CLASSES, void=True).long().to(device)
        self.losses = {PPCE: PPCELoss().to(device), SEMEDA: SemedaLoss(shipped_edge_net("voc")).to(device)}
        self.autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def logits(self, net):
        with self.autocast(): return net(self.images).float()

    def ways(self, compiled):
        "A step with each loss"
        net = torch.compile(self.net) if compiled else self.net
        def way(loss):
            def step():
                loss(self.logits(net), self.labels).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            return step
        return {name: way(torch.compile(loss) if compiled else loss) for name, loss in self.losses.items()}

    def macs(self):
        "Multiply-adds of the network, forward and back"
        with FlopCounterMode(display=False) as counter: self.logits(self.net).sum().backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops() / 2

    def check(self):
        "On the same network both losses see the same PPCE"
        with torch.no_grad(): logits = self.logits(self.net)
        alone, both = (loss(logits, self.labels) for loss in self.losses.values())
        terms = self.losses[SEMEDA].terms
        assert torch.allclose(alone, terms["ppce"]) and torch.allclose(both, terms["ppce"] + terms["semeda"]) and terms["semeda"] > 0


def main(argv=None):
    found = parser("step", __doc__, 30, 15.)
    found.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    found.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="[float32; on a GPU both]")
    found.add_argument("--batch", type=int, help="[1; on a GPU 6]")
    found.add_argument("--compile", action=argparse.BooleanOptionalAction, help="[on a GPU alone]")
    args = parse(found, argv)
    gpu = args.device == "cuda"
    batch, side = args.batch or (6 if gpu else 1), 41 if args.quick else 321
    precisions = args.precisions or (list(PRECISIONS) if gpu else ["float32"])
    backbones = args.backbones[:1] if args.quick else args.backbones
    compiled = [False] + [True] * (gpu if args.compile is None else args.compile)
    rates, rows = {p: machine_rates(args, PRECISIONS[p]) for p in precisions}, []
    for backbone in backbones:
        for precision in precisions:
            step = Step(backbone, precision, batch, side, args.device)
            step.check()
            floor = 1000 * step.macs() / rates[precision]["macs_per_second"]
            for mode in compiled:
                ways = step.ways(mode)
                times = take_turns(ways, args, warm=3 if gpu else 1)
                extra = {"extra_mib": {name: peak_extra(way, args.device) / MIB for name, way in ways.items()}}
                rows += rows_of(f"{backbone}, {batch}x3x{side}x{side}, {precision}, {'compiled' if mode else 'eager'}", times, PPCE, dict.fromkeys(ways, floor), **extra)
            torch.compiler.reset()
    show(f"training step, {args.device}, {args.threads} threads", rows)
    write("step", args, rows, rates=rates, batch=batch, side=side, classes=CLASSES, output_stride=8)
    return 0


if __name__ == "__main__": sys.exit(main())
