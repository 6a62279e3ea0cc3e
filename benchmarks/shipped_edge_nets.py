"""The Edge nets that come with the package: how they are made, and how good they are.

    python -m benchmarks.shipped_edge_nets train NAME [NAME ...] --voc FOLDER --camvid FOLDER
    python -m benchmarks.shipped_edge_nets score --voc FOLDER --camvid FOLDER

NAME is voc, cityscapes or camvid. A net begins with the weights of a first version (NAME_v1; VOC's with
those of Cityscapes and two more classes, since that one had learnt better) and is trained on, with void
contours among its masks: those that VOC's annotators drew, and drawn ones on synthetic and real masks.
At the end the edge logit's bias is raised by a margin. `train` writes
semeda/weights/edge_net_NAME.safetensors, in 3 to 6 minutes of one core. `score` measures all versions
on masks that they were not trained on, with void as it is, and writes them to results/edge_nets.json
under "shipped"; the figures in semeda/weights/MODEL_CARD.md are read from there.

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
from semeda.edge_net import EdgeNet, edge_f1, edge_recall_by_pair, embeddings, one_hot, soften, train_edge_net
from semeda.edge_net_files import SHIPPED, save_edge_net, shipped_edge_net, synthetic_masks, with_void_contours
from semeda.edges import edge_map
from semeda.reading import label_files, read_label

ROOT = Path(__file__).resolve().parent.parent
CLASSES = dict(voc=21, cityscapes=19, camvid=11)
START = dict(voc="cityscapes", cityscapes="cityscapes_v1", camvid="camvid_v1") # voc: after the first round of that net
ROUNDS = dict(voc=[1], cityscapes=[0, 1], camvid=[0]) # of training, each on synthetic masks of its own
SETTINGS = [dict(steps=1500, lr=.005, seed=0), dict(steps=2000, lr=.005, seed=1)]
VOC_STEPS = 1500
SYNTHETIC = [dict(plain=0, contoured=3, count=400, contours=0), # seeds, and how many with contours
             dict(plain=32, contoured=31, count=800, contours=33)]
MARGIN = 1. # added to the edge logit's bias, since soft labels make a net too cautious on one-hot masks
CONTOURED = .01 # share of void from which a mask of VOC counts as one with contours
SOFT = [dict(scale=scale, sigma=.2, upsample=upsample) for scale, upsample in ((8., 1), (4., 1), (8., 8))]


def voc_masks(folder, first, step=2):
    "Some of VOC's masks: those with void contours, and every tenth of the others"
    masks = [read_label(path, 21) for path in label_files(folder)[first::step]]
    contoured = [mask for mask in masks if (mask == 255).float().mean() > CONTOURED]
    plain = [mask for mask in masks[::10] if (mask == 255).float().mean() <= CONTOURED]
    return contoured, plain


def training_masks(name, args, synthetic):
    "Synthetic masks with and without void contours; for VOC and CamVid real ones too"
    classes = CLASSES[name]
    shapes = synthetic_masks(classes, synthetic["count"], seed=synthetic["contoured"])
    masks = synthetic_masks(classes, 200, seed=synthetic["plain"])
    masks += with_void_contours(shapes, seed=synthetic["contours"])
    if name == "voc":
        contoured, plain = voc_masks(args.voc, first=0)
        masks += contoured + plain[:100] + with_void_contours(plain[100:])
    if name == "camvid":
        real = camvid("train", args.camvid).labels
        masks += real + with_void_contours(real)
    return masks


def one_round(net, name, number, args, **changes):
    "A trained net after a round of training"
    # with the channels last in memory, a CPU computes these small convolutions twice as fast
    start = net.to(memory_format=torch.channels_last)
    masks = training_masks(name, args, SYNTHETIC[number])
    settings = SETTINGS[number] | changes
    return train_edge_net(masks, CLASSES[name], start=start, progress=progress_bar(tqdm, name), **settings)


def with_more_classes(net, num_classes, apart=3.2):
    "A net with further classes, whose kernels are mixed from those of three others at random"
    kernel, rng = net.conv1.weight, torch.Generator().manual_seed(0)
    mean = kernel.mean(dim=1, keepdim=True)
    own = kernel - mean
    size = own.flatten(2).permute(1, 0, 2).flatten(1).norm(dim=1).median()
    kernels = list(kernel.unbind(dim=1))
    while len(kernels) < num_classes:
        chosen = torch.randperm(net.num_classes, generator=rng)[:3]
        signs = torch.sign(torch.rand(3, generator=rng) - .5)
        mixed = (own[:, chosen] * signs[None, :, None, None]).sum(dim=1)
        mixed = mean[:, 0] + mixed * size / mixed.norm()
        if min((mixed - other).norm() for other in kernels) > apart:
            kernels.append(mixed)
    larger = EdgeNet(num_classes).requires_grad_(False)
    larger.load_state_dict(net.state_dict() | {"conv1.weight": torch.stack(kernels, dim=1)})
    return larger


def train(name, args):
    "Train a shipped net and write it into the package"
    if name == "voc":
        first = one_round(shipped_edge_net("cityscapes_v1"), "cityscapes", 0, args)
        net = one_round(with_more_classes(first, CLASSES["voc"]), "voc", 1, args, steps=VOC_STEPS)
    else:
        net = shipped_edge_net(START[name])
        for number in ROUNDS[name]:
            net = one_round(net, name, number, args)
    finish(net, name)


def finish(net, name):
    "Add the margin to a trained net and write it into the package"
    net.conv3.bias[1] += MARGIN
    path = ROOT / "semeda" / "weights" / f"edge_net_{name}.safetensors"
    save_edge_net(net, path, num_classes=CLASSES[name], start=START[name], rounds=ROUNDS[name], margin=MARGIN)


def held_out(version, args):
    "Real masks that no net was trained on, with void as it is; none for Cityscapes"
    if version.startswith("voc"):
        return dict(voc=voc_masks(args.voc, first=1, step=8)[0])
    return dict(camvid=camvid("val", args.camvid).labels[::4]) if version.startswith("camvid") else {}


def masks_for(version, args):
    "Masks of the classes of a net, by kind"
    classes = shipped_edge_net(version).num_classes
    contours = with_void_contours(synthetic_masks(classes, 100, seed=2), seed=9)
    return held_out(version, args) | dict(synthetic=synthetic_masks(classes, 30, seed=1), contours=contours)


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


def score(version, args):
    "All figures of one shipped net"
    net, found = shipped_edge_net(version), masks_for(version, args)
    row = dict(net=version, classes=net.num_classes, weights=weights_hash(net), f1={}, lowest_recall={}, masks={})
    for kind, masks in found.items():
        row["f1"][kind] = edge_f1(net, masks)
        (pair, recall), *_ = edge_recall_by_pair(net, masks).items()
        row["lowest_recall"][kind] = dict(classes=list(pair), recall=recall)
        row["masks"][kind] = len(masks)
    own = next(iter(found.values()))[::8]
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
    path = ROOT / "results" / "edge_nets.json"
    for version in args.names or SHIPPED:
        row = score(version, args)
        results = read_json(path)
        rows = {row["net"]: row for row in results.get("shipped", {}).get("rows", [])} | {version: row}
        ordered = [rows[name] for name in SHIPPED if name in rows]
        write_json(path, results | dict(shipped=dict(rows=ordered, **provenance())))


def main(argv=None):
    parser = argparse.ArgumentParser("benchmarks.shipped_edge_nets", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="nets to train or score; none: all of them")
    parser.add_argument("--voc", required=True)
    parser.add_argument("--camvid", required=True)
    args = parser.parse_args(argv)
    return command("benchmarks.shipped_edge_nets", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
