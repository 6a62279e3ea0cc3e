"""How should the labels of the Edge net be softened, and how should its embeddings enter the loss?

    python -m benchmarks.softening stages   DATASET    outputs of partly trained networks
    python -m benchmarks.softening grid     DATASET    edge F1 for each scale and sigma, on labels and on those outputs
    python -m benchmarks.softening training DATASET    segmentation trained with each choice

DATASET is scenes, or camvid with --data-root FOLDER and --init-weights FILE. Each step writes
to results/softening/ and leaves out what it finds there; nbs/paper/softening.ipynb
and nbs/paper/reduction.ipynb show it.
"""
import argparse
import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from semeda.core import weights_hash
from semeda.data import normalise
from semeda.edge_net import EdgeNet, edge_f1, embeddings, exact_edge_net, softmax_edge_f1, train_edge_net
from semeda.edge_net_files import load_edge_net, save_edge_net, synthetic_masks
from semeda.edges import edge_map
from semeda.trainer import Run, provenance, train, write_json

RESULTS = Path(__file__).resolve().parent.parent / "results" / "softening"
SCALES, SIGMAS, SEEDS = (1., 2., 4., 8., 16.), (0., .2, .5), (0, 1, 2)
STEPS = dict(grid=800, training=1500) # of the Edge nets
IMAGES = 8 # of the validation split, evenly spaced
BUDGET = dict(scenes=dict(iterations=300), camvid=dict(iterations=300, crop=96)) # beside the dataset's preset
# what differs between the trainings: Edge net (scale, sigma, upsample; (0, 0, 1) is the exact one), reduction, lambda2
PAPER, LITERAL, UPSAMPLED, EXACT = (8., .2, 1), (1., .2, 1), (8., .2, 16), (0., 0., 1)
VARIANTS = dict(
    ppce=None,
    mean=(PAPER, "channel_mean", 1.),
    relative=(PAPER, "relative", 1.),
    sum=(PAPER, "channel_sum", 1.),
    mean_upsampled=(UPSAMPLED, "channel_mean", 1.),
    relative_upsampled=(UPSAMPLED, "relative", 1.),
    mean_exact=(EXACT, "channel_mean", 1.),
    relative_exact=(EXACT, "relative", 1.),
    mean_literal=(LITERAL, "channel_mean", 1.),
)


class StagedRun(Run):
    "A run that keeps its logits, at the network's own resolution, whenever it validates"
    def _scores(self):
        picked = torch.linspace(0, len(self.val_data) - 1, IMAGES).long().tolist()
        self.net.eval()
        with torch.no_grad():
            images = torch.stack([normalise(self.val_data.images[i][None], style=self.config.style)[0] for i in picked])
            logits = self.net.head(self.net.backbone(images)).half()
        self.net.train()
        self.stages = getattr(self, "stages", []) + [logits]
        return super()._scores()


def parameters(args):
    return dict(
        dataset=args.dataset,
        data_root=args.data_root,
        init_weights=args.init_weights,
        device="cpu",
        runs=str(args.runs),
    )


def stages(args):
    "Logits of a PPCE network after 1/8, 1/4, 1/2 and all of its training"
    path = RESULTS / f"logits_{args.dataset}.safetensors"
    if path.exists():
        return
    total = dict(scenes=400, camvid=800)[args.dataset]
    run = StagedRun(
        loss="ppce",
        iterations=total,
        val_every=total // 8,
        name=f"stages-{args.dataset}",
        max_width=10,
        **parameters(args),
    )
    run.prepare()
    run.fit()
    kept = {f"{total * k // 8:05}": run.stages[k - 1] for k in (1, 2, 4, 8)}
    size = list(run.val_data.labels[0].shape)
    scores = [float(r["val_miou"]) for r in run.history if r.get("val_miou")]
    about = dict(
        dataset=args.dataset,
        size=size,
        miou={s: scores[k - 1] for s, k in zip(kept, (1, 2, 4, 8))},
        data=run.val_data.fingerprint,
        **provenance(),
    )
    save_file(kept, path, {"about": json.dumps(about)})


def outputs(dataset):
    "Softmax outputs by stage, each of shape (IMAGES, C, H, W)"
    from safetensors import safe_open
    with safe_open(path := RESULTS / f"logits_{dataset}.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    upsample = lambda z: torch.nn.functional.interpolate(
        z.float(), size=about["size"], mode="bilinear", align_corners=False
    ).softmax(1)
    return {stage: upsample(z) for stage, z in sorted(load_file(path).items())}, about


def edge_net(args, run, scale, sigma, upsample, seed, masks=None):
    "Its file, trained where it is missing"
    training = f"{'synthetic-' if masks else ''}{STEPS[args.step]}-s{seed}"
    path = args.runs / "softening_nets" / f"{args.dataset}-{scale:g}-{sigma:g}-{upsample}-{training}.safetensors"
    if not path.exists():
        classes = run.train_data.num_classes
        net = (
            exact_edge_net(classes)
            if scale == 0
            else train_edge_net(
                masks or run.train_data.labels,
                classes,
                steps=STEPS[args.step],
                scale=scale,
                sigma=sigma,
                upsample=upsample,
                lr=0.01,
                seed=seed,
            )
        )
        save_edge_net(net, path, scale=scale, sigma=sigma, upsample=upsample, seed=seed, steps=STEPS[args.step])
    return path


def net_of_outputs(probabilities, steps, crop=64):
    "An Edge net trained on the very outputs that the others are measured on: what the architecture can reach"
    outputs, rng = torch.cat(list(probabilities.values())), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = EdgeNet(outputs.shape[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=.01, total_steps=steps)
    for _ in range(steps):
        image = torch.randint(len(outputs), (4,), generator=rng)
        top, left = (int(torch.randint(n - crop + 1, (), generator=rng)) for n in outputs.shape[-2:])
        batch = torch.stack(
            [p[torch.randperm(len(p), generator=rng)] for p in outputs[image, :, top : top + crop, left : left + crop]]
        )
        edges = edge_map(batch.argmax(dim=1)).long()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(embeddings(batch, net.weights)[-1], edges).backward()
        optimizer.step()
        schedule.step()
    return net.requires_grad_(False).eval()


def grid(args):
    run = Run(None, loss="ppce", name="data", **parameters(args))
    probabilities, about = outputs(args.dataset)
    path = RESULTS / f"grid_{args.dataset}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    synthetic = synthetic_masks(run.train_data.num_classes)
    done = {(r["scale"], r["sigma"], r["upsample"], r["masks"]) for r in rows}
    noise = [(a, b, 1, "real") for a, b in itertools.product(SCALES, SIGMAS)]
    wanted = [
        *noise,
        *((*k, m) for k in (PAPER, UPSAMPLED) for m in ("real", "synthetic")),
        (*EXACT, "none"),
        (0.0, 0.0, 0, "outputs"),
    ]
    for scale, sigma, upsample, masks in tqdm([w for w in dict.fromkeys(wanted) if w not in done], desc="grid"):
        if masks == "outputs":
            net = net_of_outputs(probabilities, STEPS["grid"])
        else:
            net = load_edge_net(
                edge_net(args, run, scale, sigma, upsample, 0, synthetic if masks == "synthetic" else None)
            )
        labels = [run.val_data.labels[i] for i in range(len(run.val_data))]
        row = dict(
            scale=scale,
            sigma=sigma,
            upsample=upsample,
            masks=masks,
            weights=weights_hash(net),
            labels=edge_f1(net, labels),
        )
        for tolerance in (0, 1):
            row[f"softmax_tolerance_{tolerance}"] = {
                s: softmax_edge_f1(net, p, tolerance=tolerance) for s, p in probabilities.items()
            }
        rows.append(row)
        write_json(
            path,
            dict(
                dataset=args.dataset,
                edge_steps=STEPS["grid"],
                network=dict(miou=about["miou"], images=IMAGES),
                data=run.val_data.fingerprint,
                **provenance(),
                rows=rows,
            ),
        )


def training(args):
    data = Run(None, loss="ppce", name="data", **parameters(args))
    for seed, (variant, choice) in itertools.product(SEEDS[:args.seeds], VARIANTS.items()):
        path = RESULTS / f"training_{args.dataset}_{variant}_s{seed}.json"
        if path.exists() or (args.variants and variant not in args.variants.split(",")):
            continue
        more = dict(loss="ppce")
        if choice:
            softening, reduction, weight = choice
            more = dict(
                loss="semeda",
                edge_net=str(edge_net(args, data, *softening, seed)),
                reduction=reduction,
                lambdas=[0, weight, 0],
            )
        name = path.stem
        try:
            run = train(
                tqdm,
                seed=seed,
                name=name,
                val_every=0,
                max_width=10,
                resume=True,
                **more,
                **BUDGET[args.dataset],
                **parameters(args),
            )
            metrics = {
                k: run.metrics[k] for k in ("miou", "iou", "boundary_miou", "non_boundary_miou", "last_losses", "cost")
            }
        except ValueError as error: # a training that diverged is a result
            metrics = dict(failed=str(error))
        record = {k: v for k, v in run.record.items() if k != "config"} if "failed" not in metrics else provenance()
        config = (
            {
                k: v
                for k, v in run.record["config"].items()
                if k not in ("runs", "data_root", "init_weights", "edge_net")
            }
            if "failed" not in metrics
            else more
        )
        write_json(
            path,
            dict(
                variant=variant,
                choice=choice,
                dataset=args.dataset,
                seed=seed,
                metrics=metrics,
                config=config,
                **{k: v for k, v in record.items() if k != "init_weights"},
            ),
        )


def main():
    parser = argparse.ArgumentParser(
        "benchmarks.softening", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("stages", "grid", "training"))
    parser.add_argument("dataset", choices=("scenes", "camvid"))
    parser.add_argument("--data-root", default="")
    parser.add_argument("--init-weights", default="")
    parser.add_argument("--runs", type=Path, default=Path("runs/softening"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=(1, 2, 3))
    parser.add_argument("--variants", default="", help="some of them, with commas between")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    globals()[args.step](args)


if __name__ == "__main__":
    main()
