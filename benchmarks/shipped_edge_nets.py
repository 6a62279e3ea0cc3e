"""The Edge nets that come with the package: how they are made, and how good they are.

    python -m benchmarks.shipped_edge_nets train NAME [NAME ...] --voc FOLDER --camvid FOLDER
    python -m benchmarks.shipped_edge_nets score --voc FOLDER --camvid FOLDER

NAME is voc, cityscapes or camvid. A net begins with the weights of its first version (NAME_v1) and is
trained on, with void contours among its masks: those that VOC's annotators drew, and drawn ones on
synthetic and real masks. `train` writes semeda/weights/edge_net_NAME.safetensors, in 5 to 10 minutes
of one core. `score` measures all versions on masks that they were not trained on, with void as it is,
and writes them to results/edge_nets.json under "shipped"; the figures in semeda/weights/MODEL_CARD.md
are read from there.

VOC's folder holds the 10,582 masks of train_aug. Its held-out masks are odd-numbered files of which
more than 1% is void: those with contours. CamVid's folder holds trainannot/ and valannot/.
"""
import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from semeda.core import command, progress_bar, provenance, read_json, weights_hash, write_json
from semeda.data import camvid
from semeda.edge_net import edge_f1, edge_recall_by_pair, embeddings, one_hot, soften, train_edge_net
from semeda.edge_net_files import SHIPPED, save_edge_net, shipped_edge_net, synthetic_masks, with_void_contours
from semeda.edges import edge_map
from semeda.reading import label_files, read_label

ROOT = Path(__file__).resolve().parent.parent
CLASSES = dict(voc=21, cityscapes=19, camvid=11)
SETTINGS = dict(steps=1500, lr=.005)
CONTOURED = .01 # share of void from which a mask of VOC counts as one with contours
SOFT = [dict(scale=8., sigma=.2, upsample=1),
        dict(scale=4., sigma=.2, upsample=1), dict(scale=8., sigma=.2, upsample=8)]


def voc_masks(folder, first):
    "Every second mask of VOC: those with void contours, and every tenth of the others"
    masks = [read_label(path, 21) for path in label_files(folder)[first::2]]
    contoured = [mask for mask in masks if (mask == 255).float().mean() > CONTOURED]
    plain = [mask for mask in masks[::10] if (mask == 255).float().mean() <= CONTOURED]
    return contoured, plain


def training_masks(name, args):
    "Synthetic masks with and without void contours; for VOC and CamVid real ones too"
    classes = CLASSES[name]
    masks = synthetic_masks(classes, 200) + with_void_contours(synthetic_masks(classes, 400, seed=3))
    if name == "voc":
        contoured, plain = voc_masks(args.voc, first=0)
        masks += contoured + plain[:100] + with_void_contours(plain[100:])
    if name == "camvid":
        real = camvid("train", args.camvid).labels
        masks += real + with_void_contours(real)
    return masks


def train(name, args):
    "Train a shipped net and write it into the package"
    # with the channels last in memory, a CPU computes these small convolutions twice as fast
    start = shipped_edge_net(f"{name}_v1").to(memory_format=torch.channels_last)
    masks = training_masks(name, args)
    net = train_edge_net(masks, CLASSES[name], start=start, progress=progress_bar(tqdm, name), **SETTINGS)
    path = ROOT / "semeda" / "weights" / f"edge_net_{name}.safetensors"
    save_edge_net(net, path, num_classes=CLASSES[name], masks=len(masks), start=f"{name}_v1", **SETTINGS)


def held_out(args):
    "Masks that no net was trained on, with void as it is"
    return dict(voc=voc_masks(args.voc, first=1)[0][::3], camvid=camvid("val", args.camvid).labels[::2])


def masks_for(name, real):
    "Masks of the classes of a net, by kind"
    classes = CLASSES[name]
    masks = dict(synthetic=synthetic_masks(classes, 50, seed=1))
    masks["contours"] = with_void_contours(synthetic_masks(classes, 100, seed=2), seed=9)
    return ({name: real[name]} if name in real else {}) | masks


@torch.no_grad()
def soft_edges(net, masks, settings):
    "Share of false edges among pixels without an edge, and recall, on softened masks"
    rng, counts = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.long)
    for mask in masks:
        soft = soften(one_hot(mask[None].long(), net.num_classes), generator=rng, **settings)
        found, edges = net(soft)[0, 1] > .5, edge_map(mask)
        none, true = edges == 0, edges == 1
        counts += torch.stack([(found & none).sum(), none.sum(), (found & true).sum(), true.sum()])
    false, none, hit, true = counts.tolist()
    return dict(**settings, false_edges=false / none, recall=hit / true)


@torch.no_grad()
def mean_embedding(net, masks):
    "Mean of |psi^l| over masks, for each layer"
    sizes = []
    for mask in masks:
        psi = embeddings(one_hot(mask[None].long(), net.num_classes), net.weights)
        sizes.append(torch.stack([p.abs().mean() for p in psi]))
    return torch.stack(sizes).mean(dim=0).tolist()


def score(version, real):
    "All figures of one shipped net"
    net, found = shipped_edge_net(version), masks_for(version.removesuffix("_v1"), real)
    row = dict(net=version, classes=net.num_classes, weights=weights_hash(net), f1={}, lowest_recall={}, masks={})
    for kind, masks in found.items():
        row["f1"][kind] = edge_f1(net, masks)
        (pair, recall), *_ = edge_recall_by_pair(net, masks).items()
        row["lowest_recall"][kind] = dict(classes=list(pair), recall=recall)
        row["masks"][kind] = len(masks)
    own = next(iter(found.values()))[::6]
    row["mean_embedding"] = mean_embedding(net, own)
    row["softened"] = [soft_edges(net, own, settings) for settings in SOFT]
    print({key: row[key] for key in ("net", "f1", "lowest_recall", "mean_embedding", "softened")}, flush=True)
    return row


def work(args):
    "Train or score"
    if args.what == "train":
        for name in args.names or CLASSES:
            train(name, args)
        return
    real = held_out(args)
    path = ROOT / "results" / "edge_nets.json"
    shipped = dict(rows=[score(version, real) for version in SHIPPED], **provenance())
    write_json(path, read_json(path) | dict(shipped=shipped))


def main(argv=None):
    parser = argparse.ArgumentParser("benchmarks.shipped_edge_nets", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="nets to train; all of them where none is named")
    parser.add_argument("--voc", required=True)
    parser.add_argument("--camvid", required=True)
    args = parser.parse_args(argv)
    return command("benchmarks.shipped_edge_nets", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
