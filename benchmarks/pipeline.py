"""Does a training step wait for its data?

    python -m benchmarks.pipeline [--device cuda] [--data-root CAMVID] [--workers 0 2]

Images a second that `TrainingCrops` gives through a DataLoader, with the dataset's preset, for each number
of worker processes, beside the images a second that a step on a batch in memory takes, with PPCE and with
SEMEDA: scenes, and CamVid if its folder is given. A DataLoader is timed over several batches for each worker, after
those that its workers may have ready. Then the real loop: the share of its time that it spends in waiting for the
next batch, while a GPU may still be at work; on a CPU, workers take cores from the step. The ways take turns. The
batches are checked to be those of the sequence. The floor of a loop is its step on a batch in memory.
Writes results/bench/pipeline-DEVICE.json.
"""
import itertools
import statistics
import sys
import tempfile
import time

import torch
from torch.utils.data import DataLoader

from semeda.data import TrainingCrops
from semeda.losses import PPCELoss
from semeda.trainer import Run

from .timing import parse, parser, rows_of, show, take_turns, write

PPCE, SEMEDA = "step alone, PPCE", "step alone, SEMEDA"


class Pipeline:
    "Data, network and losses of a dataset's preset"
    def __init__(self, dataset, device, runs, data_root="", **settings):
        where = dict(dataset=dataset, data_root=data_root, device=device, runs=runs)
        run = self.run = Run(None, **where, edge_steps=2, **settings)
        run.prepare()
        config = run.config
        self.device, self.batch = run.fabric.device, config.batch_size
        self.net = run.net.to(self.device).train()
        self.losses = {PPCE: PPCELoss(), SEMEDA: run.loss}
        trained, scales = [p for p in self.net.parameters() if p.requires_grad], (config.scale_min, config.scale_max)
        how = dict(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        self.optimizer = torch.optim.SGD(trained, **how)
        self.crops = TrainingCrops(run.train_data, 10**9, config.crop, scales, config.seed, config.style)
        self.images, self.labels = next(self.loader(0))

    def loader(self, workers):
        "The sequence's batches from the start, in memory of the device, as the trainer gets them"
        loader = DataLoader(self.crops, self.batch, sampler=range(len(self.crops)), num_workers=workers)
        return ((images.to(self.device), labels.to(self.device)) for images, labels in loader)

    def step(self, loss, images, labels):
        loss(self.net(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def load(self, workers, batches):
        "Seconds a batch of a DataLoader that has none in store"
        loader = self.loader(workers)
        for _ in itertools.islice(loader, stored(workers)):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(loader, batches):
            pass
        self.wait()
        return (time.perf_counter() - start) / batches

    def loop(self, workers, loss, steps):
        "Seconds a step of a real loop, and the share of it in waiting for data"
        loader = self.loader(workers)
        for i in range(stored(workers) + steps):
            if i == stored(workers):
                self.wait()
                start, waited = time.perf_counter(), 0.
            asked = time.perf_counter()
            images, labels = next(loader)
            if i >= stored(workers):
                waited += time.perf_counter() - asked
            self.step(loss, images, labels)
        self.wait()
        total = time.perf_counter() - start
        return total / steps, waited / total

    def check(self, workers):
        "A DataLoader gives the numbered crops in order, whatever its workers"
        for k, (images, labels) in enumerate(itertools.islice(self.loader(workers), 2)):
            for i in range(self.batch):
                image, label = self.crops[k * self.batch + i]
                assert torch.equal(images[i].cpu(), image) and torch.equal(labels[i].cpu(), label)


def stored(workers):
    "Batches that a DataLoader may have ready or in the making, and the first"
    return 3 * workers + 1


def measure(pipeline, case, workers, steps, args):
    "Rows of one dataset"
    shares = {}
    def step(loss):
        return lambda: pipeline.step(loss, pipeline.images, pipeline.labels)
    def load(count):
        return lambda: pipeline.load(count, steps * max(1, count))
    def loop(name, count, loss):
        def way():
            seconds, share = pipeline.loop(count, loss, steps * max(1, count))
            shares.setdefault(name, []).append(share)
            return seconds
        return way
    ways = {name: step(loss) for name, loss in pipeline.losses.items()}
    for count in workers:
        ways[f"DataLoader, {count} workers"] = load(count)
        for name, loss in pipeline.losses.items():
            name = f"loop, {count} workers, {name.rpartition(' ')[2]}"
            ways[name] = loop(name, count, loss)
    rows = rows_of(case, take_turns(ways, args, warm=1), SEMEDA)
    alone = {row["way"].rpartition(" ")[2]: row["ms"] for row in rows[:2]}
    for row in rows:
        row["images_per_second"] = 1000 * pipeline.batch / row["ms"]
        if row["way"] in shares:
            share, floor = statistics.median(shares[row["way"]]), alone[row["way"].rpartition(" ")[2]]
            row |= dict(waiting=share, floor_ms=floor, times_floor=row["ms"] / floor)
            row["note"] = f"{100 * share:.1f} % of it waiting for data"
    return rows


def main(argv=None):
    found = parser("pipeline", __doc__, 9, 90.)
    found.add_argument("--workers", type=int, nargs="+", help="[0 2; on a GPU 0 8]")
    found.add_argument("--steps", type=int, default=6, help="batches a turn, and a worker [%(default)s]")
    args = parse(found, argv)
    several = [] if args.quick else [8] if args.device == "cuda" else [2]
    workers, steps = args.workers or [0, *several], 1 if args.quick else args.steps
    tiny = dict(crop=24, batch_size=2) if args.quick else {}
    rows, sizes = [], {}
    for dataset in ["scenes", *["camvid"] * bool(args.data_root)]:
        with tempfile.TemporaryDirectory() as runs:
            pipeline = Pipeline(dataset, args.device, runs, args.data_root if dataset == "camvid" else "", **tiny)
            for count in workers:
                pipeline.check(count)
            config = pipeline.run.config
            sizes[dataset] = dict(crop=config.crop, batch=config.batch_size, preset=config.preset)
            sizes[dataset] |= dict(train_images=len(pipeline.run.train_data))
            case = f"{dataset}, {config.batch_size} crops of {config.crop}x{config.crop}"
            rows += measure(pipeline, case, workers, steps, args)
    floor = "the floor of a loop is its step on a batch in memory"
    show(f"input pipeline, {args.device}, {args.threads} threads; {floor}", rows)
    write("pipeline", args, rows, steps=steps, datasets=sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
