"""How many images a second does the trainer train on, beside plain PyTorch?

    python -m benchmarks.throughput [--device cuda] [--steps 200] [--precision bf16-mixed] [--workers 8]

The same network (DeepLab-v2 on ResNet-18), the same crops of the built-in scenes in the same order and the same PPCE,
from the same weights: `Run.fit` with its own settings (a row of history every 10 steps, a checkpoint every 100 and at
the end), but without validation, which the others have not; a plain PyTorch loop; `TrainEpoch` of
segmentation-models-pytorch; and a LightningModule under `lightning.Trainer` (the extra `semeda[bench]`). A turn
trains for all steps; the weights after a few steps are checked to agree,
with `TrainEpoch` at a constant learning rate, since it knows no schedule.

The floor is the plain loop over batches that lie in memory. Writes results/bench/throughput-DEVICE.json.
"""
import contextlib
import importlib.util
import sys
import tempfile

import torch
from torch import nn
from torch.utils.data import DataLoader

from semeda.data import TrainingCrops
from semeda.trainer import Run

from .timing import VOID, parse, parser, rows_of, show, take_turns, write

OURS, PLAIN, FLOOR = "semeda Run.fit", "plain PyTorch loop", "plain loop, batches in memory"
SMP, LIGHTNING = "smp TrainEpoch", "Lightning Trainer"


class FitAlone(Run):
    "A run that does not validate"
    def _scores(self): return {}


class Contest:
    "Ways to train one network for a number of steps"
    def __init__(self, device, runs, **settings):
        run = self.run = FitAlone(None, dataset="scenes", loss="ppce", device=device, runs=runs, **settings)
        run.prepare()
        self.config, self.device, self.net = run.config, run.fabric.device, run.net.to(run.fabric.device)
        self.start = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.batches = [(images.to(self.device), labels.to(self.device)) for images, labels in self.loader()]

    def loader(self):
        config = self.config
        scales, count = (config.scale_min, config.scale_max), config.iterations * config.batch_size
        crops = TrainingCrops(self.run.train_data, count, config.crop, scales, config.seed, config.style)
        return DataLoader(crops, config.batch_size, num_workers=config.workers)

    def optimizer(self):
        config, net = self.config, self.net
        groups = [
            dict(params=list(net.backbone.parameters()), lr=config.lr),
            dict(params=list(net.head.parameters()), lr=config.lr * config.head_lr_factor),
        ]
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)

    def schedule(self, optimizer):
        config = self.config
        def factor(done):
            rising = min(1, (done + 1) / max(1, config.warmup))
            return (1 - done / config.iterations)**config.power * rising
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def begin(self):
        self.net.load_state_dict(self.start)
        self.net.zero_grad()
        self.net.train()

    def ours(self):
        self.begin()
        self.run.history, self.run._begun = [], False # from the start again, with its weights
        self.run.fit()

    def plain(self, batches=None):
        self.begin()
        optimizer = self.optimizer()
        schedule, criterion = self.schedule(optimizer), nn.CrossEntropyLoss(ignore_index=VOID)
        mixed = contextlib.nullcontext()
        if self.config.precision == "bf16-mixed":
            mixed = torch.autocast(self.device.type, torch.bfloat16)
        for images, labels in batches or self.loader():
            images, labels = images.to(self.device), labels.to(self.device)
            optimizer.zero_grad()
            with mixed:
                logits = self.net(images)
            criterion(logits.float(), labels).backward()
            optimizer.step()
            schedule.step()

    def smp(self):
        from segmentation_models_pytorch.utils.train import TrainEpoch
        self.begin()
        criterion = nn.CrossEntropyLoss(ignore_index=VOID)
        criterion.__name__ = "ppce"
        TrainEpoch(self.net, criterion, [], self.optimizer(), self.device, verbose=False).run(self.loader())

    def lightning(self):
        import lightning
        contest, criterion = self, nn.CrossEntropyLoss(ignore_index=VOID)
        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = contest.net

            def training_step(self, batch, index):
                loss = criterion(self.net(batch[0]).float(), batch[1])
                self.log("loss", loss)
                return loss

            def configure_optimizers(self):
                optimizer = contest.optimizer()
                schedule = dict(scheduler=contest.schedule(optimizer), interval="step")
                return dict(optimizer=optimizer, lr_scheduler=schedule)
        self.begin()
        config = self.config
        trainer = lightning.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=config.precision,
            max_steps=config.iterations,
            max_epochs=1,
            default_root_dir=self.run.folder / "lightning",
            log_every_n_steps=min(config.log_every, config.iterations),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), self.loader())
        self.net.to(self.device)

    def ways(self):
        "All ways, and why some are left out"
        found, missing = {OURS: self.ours, PLAIN: self.plain, FLOOR: lambda: self.plain(self.batches)}, {}
        if not importlib.util.find_spec("segmentation_models_pytorch"):
            missing[SMP] = "not installed: pip install 'semeda[peers]'"
        elif self.config.precision != "32-true":
            missing[SMP] = "cannot: has no mixed precision"
        else:
            found[SMP] = self.smp
        if importlib.util.find_spec("lightning"):
            found[LIGHTNING] = self.lightning
        else:
            missing[LIGHTNING] = "not installed: pip install 'semeda[bench]'"
        return found, missing

    def check(self, ways, tolerance):
        """All ways end in the same weights, up to rounding

        At a constant rate; on the schedule all but `TrainEpoch`, which has none."""
        power, warmup = self.config.power, self.config.warmup
        for schedule in (dict(power=power, warmup=warmup), dict(power=0., warmup=0)):
            vars(self.config).update(schedule)
            ends = {}
            for name, way in ways.items():
                way()
                ends[name] = torch.cat([p.detach().flatten() for p in self.net.parameters()])
            moved = (ends[PLAIN] - torch.cat([self.start[n].flatten() for n, _ in self.net.named_parameters()])).norm()
            for name, end in ends.items():
                if name == SMP and schedule["power"]:
                    continue
                gap = (end - ends[PLAIN]).norm() / moved
                assert gap <= tolerance, f"{name} ends {gap:.2g} of the way from {PLAIN}"
        vars(self.config).update(power=power, warmup=warmup)


def main(argv=None):
    found = parser("throughput", __doc__, 24, 540.)
    found.add_argument("--steps", type=int, help="training steps a turn [25; on a GPU 200]")
    found.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    found.add_argument("--workers", type=int, help="of the data loaders [0; on a GPU 8]")
    args = parse(found, argv)
    workers = args.workers if args.workers is not None else 8 * (args.device == "cuda")
    steps = args.steps or (200 if args.device == "cuda" else 25)
    settings = dict(iterations=steps, precision=args.precision, workers=workers)
    if args.quick:
        settings |= dict(iterations=3, crop=32, batch_size=2)
    torch.backends.cudnn.deterministic = True # the check compares weights
    with tempfile.TemporaryDirectory() as runs:
        rate = dict(iterations=3, lr=1e-3) # at which rounding does not grow
        few = Contest(args.device, runs, name="check", **settings | rate)
        few.check(few.ways()[0], 1e-3 if args.device == "cpu" else .1)
        torch.backends.cudnn.deterministic = False
        contest = few if args.quick else Contest(args.device, runs, name="timed", **settings)
        config, (ways, missing) = contest.config, contest.ways()
        case = f"scenes, {config.batch_size} crops of {config.crop}x{config.crop}, {config.precision}"
        case += f", {config.iterations} steps, {workers} workers"
        rows = rows_of(case, take_turns(ways, args, warm=args.device == "cuda"), PLAIN)
    least = next(row["ms"] for row in rows if row["way"] == FLOOR)
    images = config.iterations * config.batch_size
    for row in rows:
        row |= dict(images_per_second=1000 * images / row["ms"], floor_ms=least, times_floor=row["ms"] / least)
    rows += [dict(case=case, way=name, ms=None, note=note) for name, note in missing.items()]
    show(f"training throughput, {args.device}, {args.threads} threads", rows)
    about = dict(batch=config.batch_size, crop=config.crop, precision=config.precision, workers=workers)
    about |= dict(steps=config.iterations, checkpoint_every=config.checkpoint_every)
    write("throughput", args, rows, ["segmentation-models-pytorch", "lightning"], **about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
