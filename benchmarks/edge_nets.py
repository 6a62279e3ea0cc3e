"""How good are the shipped Edge nets, and do synthetic masks teach as well as real ones?

    python -m benchmarks.edge_nets [--camvid FOLDER] [--voc FOLDER_OF_MASKS] [--steps 10000]

Measures the edge F1 of each shipped net on clean one-hot masks that it was not trained on, and
beside it a net of as many classes that saw synthetic masks only. A net meets masks of another
dataset with their classes renamed at random to its own. For CamVid also the
edges in softmax outputs, against those of their own argmax. Writes results/edge_nets.json; the
figures in semeda/weights/MODEL_CARD.md are read from there.
"""
import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from semeda.core import weights_hash
from semeda.data import camvid, read_label
from semeda.edge_net import edge_f1, softmax_edge_f1, train_edge_net
from semeda.edge_net_files import SHIPPED, load_edge_net, save_edge_net, shipped_edge_net, synthetic_masks
from semeda.trainer import provenance, write_json

from .softening import outputs

RESULTS = Path(__file__).resolve().parent.parent / "results"


def held_out(args):
    "Label masks by name; VOC's are 265 of the odd-numbered ones, which its net was not trained on"
    masks = dict(synthetic=None)
    if args.camvid:
        masks["camvid"] = camvid("val", args.camvid).labels
    if args.voc:
        masks["voc"] = [read_label(f, 21) for f in sorted(Path(args.voc).glob("*.png"))[1::2][::20]]
    return masks


def renamed(masks, classes):
    "The same masks with their classes given other names out of 0..classes-1"
    names = torch.randperm(max(classes, 21), generator=torch.Generator().manual_seed(0)) % classes
    return [torch.where(m == 255, 255, names[m.long().clamp(max=20)]).to(torch.uint8) for m in masks]


def synthetic_net(classes, steps, folder):
    path = folder / f"synthetic_{classes}_{steps}.safetensors"
    if not path.exists():
        save_edge_net(train_edge_net(synthetic_masks(classes), classes, steps=steps, lr=.01, progress=tqdm), path)
    return load_edge_net(path)


def like_a_network(args, steps=6000):
    "CamVid's classes from real and synthetic masks, softened like an upsampled output"
    path = args.runs / f"like_a_network_11_{steps}.safetensors"
    if not path.exists():
        masks = camvid("train", args.camvid).labels + synthetic_masks(11, 400)
        save_edge_net(train_edge_net(masks, 11, steps=steps, lr=.01, upsample=16, progress=tqdm), path)
    return load_edge_net(path)


def on_outputs(args, masks):
    "F1 on labels and on the outputs of the most trained network of the softening study, by tolerance in pixels"
    stage, probabilities = sorted(outputs("camvid")[0].items())[-1]
    nets = dict(
        shipped=shipped_edge_net("camvid"),
        synthetic=synthetic_net(11, args.steps, args.runs),
        like_a_network=like_a_network(args),
    )
    rows = []
    for kind, net in nets.items():
        rows.append(
            dict(
                net="camvid",
                kind=kind,
                weights=weights_hash(net),
                labels=edge_f1(net, masks),
                **{f"softmax_{t}": softmax_edge_f1(net, probabilities, tolerance=t) for t in (0, 1)},
            )
        )
        print(rows[-1])
    return dict(stage=int(stage), rows=rows)


def main():
    parser = argparse.ArgumentParser(
        "benchmarks.edge_nets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--camvid", default="")
    parser.add_argument("--voc", default="")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--runs", type=Path, default=Path("runs/edge_nets"))
    args = parser.parse_args()
    real, rows = held_out(args), []
    for name in SHIPPED:
        shipped = shipped_edge_net(name)
        nets = dict(shipped=shipped)
        if name != "cityscapes": # that one is a synthetic one
            nets["synthetic"] = synthetic_net(shipped.num_classes, args.steps, args.runs)
        for kind, net in nets.items():
            f1 = {}
            for data, masks in real.items():
                masks = masks or synthetic_masks(net.num_classes, 50, seed=1)
                f1[data] = edge_f1(net, masks if data in (name, "synthetic") else renamed(masks, net.num_classes))
            rows.append(dict(net=name, kind=kind, classes=net.num_classes, weights=weights_hash(net), f1=f1))
            print(name, kind, {k: round(v, 4) for k, v in f1.items()})
    softmax = on_outputs(args, real["camvid"]) if args.camvid else None
    write_json(
        RESULTS / "edge_nets.json",
        dict(
            softmax=softmax,
            steps=args.steps,
            masks={k: len(v) if v else 50 for k, v in real.items()},
            **provenance(),
            rows=rows,
        ),
    )


if __name__ == "__main__":
    main()
