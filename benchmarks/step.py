"""What does SEMEDA add to a training step?

    python -m benchmarks.step [--device cuda] [--backbones resnet18] [--precisions float32 bfloat16] [--compile]
                              [--channels-last]

Forward, loss, backward and SGD step of DeepLab-v2 as in the paper (21 classes, output stride 8, four layers, frozen
batch-norm, random weights whose blocks begin near the identity) on one random batch of 321x321: with PPCE, and with
PPCE + SEMEDA (`SemedaLoss`) on the same network. Weights and momentum must be finite at the end: NaN has a speed of
its own.
bfloat16 is autocast around the network; the losses compute in float32. With --compile, also network and loss
through torch.compile, which takes a minute each; value and gradients must be those of the eager step. On a GPU the
batch is 6, the paper's, both precisions are measured, the compiled steps too unless --no-compile is given. With
--channels-last, the eager steps once more with the network channels last in memory; on a GPU by default. Extra memory
is the most that live tensors hold during a step beyond network, batch and momentum.

The floor is the multiply-adds of the network's convolutions, forward and back, without those of padding, at the
best rate of a large matrix product of the same dtype in the same process, before and after. Writes
results/bench/step-DEVICE.json.
"""
import argparse
import sys

import torch
import torch.nn.functional as F
from torch import nn

from semeda.deeplab import BACKBONES, DeepLabV2
from semeda.edge_net_files import shipped_edge_net
from semeda.losses import PPCELoss, SemedaLoss

from .timing import MIB, machine_rates, parse, parser, peak_extra, regions, rows_of, show, take_turns, write

CLASSES = 21
PRECISIONS = dict(float32=torch.float32, bfloat16=torch.bfloat16)
PPCE, SEMEDA = "PPCE", "PPCE + SEMEDA"


class Step:
    "Training steps of one network on one batch"
    def __init__(self, backbone, precision, batch, side, device, losses=None):
        torch.manual_seed(0)
        style = "torchvision" if backbone == "resnet18" else "caffe"
        self.net = DeepLabV2(CLASSES, backbone, style=style).to(device).train()
        near_identity(self.net, "bn2" if backbone == "resnet18" else "bn3")
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=5e-4, momentum=.9, weight_decay=5e-4)
        self.images = torch.randn(batch, 3, side, side, device=device)
        self.labels = regions((batch, side, side), CLASSES, void=True).long().to(device)
        losses = losses or {PPCE: PPCELoss(), SEMEDA: SemedaLoss(shipped_edge_net("voc"))}
        self.losses = {name: loss.to(device) for name, loss in losses.items()}
        self.precision, self.device = precision, device

    def logits(self, net):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return net(self.images).float()

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

    def put_channels_last(self):
        "The same network laid out otherwise, with the same loss"
        images = self.images[:1]
        with torch.no_grad():
            before = self.net(images)
            self.net.to(memory_format=torch.channels_last)
            assert torch.allclose(before, self.net(images), rtol=1e-2, atol=1e-2 * before.abs().max())

    def macs(self):
        "Multiply-adds of the network's convolutions, forward and back"
        counts = []
        def count(conv, inputs, out):
            passes = 1 + conv.weight.requires_grad + inputs[0].requires_grad
            counts.append(macs_inside(conv, inputs[0], out) * passes)
        hooks = [m.register_forward_hook(count) for m in self.net.modules() if isinstance(m, nn.Conv2d)]
        self.logits(self.net)
        for hook in hooks:
            hook.remove()
        return sum(counts)

    def check(self, compiled):
        "PPCE is PyTorch's, SEMEDA adds something, and compiled steps have the eager steps' losses and gradients"
        with torch.no_grad():
            logits = self.logits(self.net)
            alone, both = (loss(logits, self.labels) for loss in self.losses.values())
        assert torch.allclose(alone, F.cross_entropy(logits, self.labels, ignore_index=255), rtol=1e-4) and both > alone
        if not compiled:
            return
        net, close = torch.compile(self.net), 1e-3 if self.precision == "float32" else 2e-2
        for name, loss in self.losses.items():
            value, gradient = self.value_and_gradient(self.net, loss)
            other, its = self.value_and_gradient(net, torch.compile(loss))
            agree = abs(value - other) <= close * value and (gradient - its).norm() <= 5 * close * gradient.norm()
            assert agree, f"{name}, compiled, differs from eager"

    def value_and_gradient(self, net, loss):
        "Loss, and the gradients of the classifier's weights"
        value = loss(self.logits(net), self.labels)
        gradients = torch.autograd.grad(value, list(self.net.head.parameters()))
        return value.detach(), torch.cat([g.flatten() for g in gradients])

    def check_finite(self):
        tensors = [*self.net.parameters(), *(state["momentum_buffer"] for state in self.optimizer.state.values())]
        assert all(t.isfinite().all() for t in tensors), "weights or momentum are not finite any more"


def near_identity(net, last):
    "Scale the last batch-norm of each block: random blocks one after another would grow without bound"
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name.endswith(last):
            nn.init.constant_(module.weight, .2)


def macs_inside(conv, x, out):
    "Multiply-adds of a convolution's forward pass whose input is inside the image"
    def taps(size, outputs, axis):
        kernel, stride = conv.kernel_size[axis], conv.stride[axis]
        padding, dilation = conv.padding[axis], conv.dilation[axis]
        return sum(0 <= i * stride - padding + k * dilation < size for i in range(outputs) for k in range(kernel))
    inside = taps(x.shape[2], out.shape[2], 0) * taps(x.shape[3], out.shape[3], 1)
    return len(x) * conv.out_channels * conv.in_channels // conv.groups * inside


def tf32(precision, device):
    return device == "cuda" and precision == "float32" and torch.backends.cudnn.allow_tf32


def main(argv=None):
    found = parser("step", __doc__, 30, 120.)
    found.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    found.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="[float32; on a GPU both]")
    found.add_argument("--batch", type=int, help="[1; on a GPU 6]")
    for name in ("--compile", "--channels-last"):
        found.add_argument(name, action=argparse.BooleanOptionalAction, help="[on a GPU alone]")
    args = parse(found, argv)
    gpu = args.device == "cuda"
    batch, side = args.batch or (6 if gpu else 1), 41 if args.quick else 321
    precisions = args.precisions or (list(PRECISIONS) if gpu else ["float32"])
    backbones = args.backbones[:1] if args.quick else args.backbones
    asked = dict(compiled=args.compile, channels_last=args.channels_last)
    modes = ["eager", *(mode for mode, value in asked.items() if (gpu if value is None else value))]
    rates, rows = {p: machine_rates(args, PRECISIONS[p]) for p in precisions}, []
    for backbone in backbones:
        for precision in precisions:
            step = Step(backbone, precision, batch, side, args.device)
            step.check("compiled" in modes)
            macs, mine = step.macs(), []
            for mode in modes:
                if mode == "channels_last":
                    step.put_channels_last()
                ways = step.ways(mode == "compiled")
                times = take_turns(ways, args, warm=3 if gpu else 1)
                extra = {"extra_mib": {name: peak_extra(way, args.device) / MIB for name, way in ways.items()}}
                kind = precision + (" (TF32 convolutions)" if tf32(precision, args.device) else "")
                case = f"{backbone}, {batch}x3x{side}x{side}, {kind}, {mode.replace('_', ' ')}"
                mine += rows_of(case, times, PPCE, **extra)
            step.check_finite()
            later = machine_rates(args, PRECISIONS[precision])
            rates[precision] = {name: max(rate, later[name]) for name, rate in rates[precision].items()}
            floor = 1000 * macs / rates[precision]["macs_per_second"]
            rows += [row | dict(macs=macs, floor_ms=floor, times_floor=row["ms"] / floor) for row in mine]
            torch.compiler.reset()
    show(f"training step, {args.device}, {args.threads} threads", rows)
    write("step", args, rows, rates=rates, batch=batch, side=side, classes=CLASSES, output_stride=8)
    return 0


if __name__ == "__main__":
    sys.exit(main())
