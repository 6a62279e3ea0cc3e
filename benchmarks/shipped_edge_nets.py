"""The Edge nets that come with the package: how they are made, and how good they are.

    python -m benchmarks.shipped_edge_nets train NAME [NAME ...] --voc FOLDER --camvid FOLDER
    python -m benchmarks.shipped_edge_nets score --voc FOLDER --camvid FOLDER

NAME is voc, cityscapes or camvid. A net begins with the weights of a first version (NAME_v1; VOC's with
those of Cityscapes and two more classes, since that one had learnt better) and is trained on with patches
of real masks, random shapes, thin lines and blocks, with and without void contours. Half of each batch is
softened labels from anywhere in a mask. The other half is clean one-hots around edges and void, and the
loss asks for a margin there. The weights are averaged over the last steps. At the end each embedding is
scaled to the mean size that it had in the nets before, so that the weight of a loss need not change, and the edge
logit's bias is raised a little.

`train` writes semeda/weights/edge_net_NAME.safetensors, in 1.5 to 3 minutes of CPU time on one thread.
`score` measures all versions on masks that they were not trained on, with void as it is, and writes them to
results/edge_nets.json under "shipped"; the figures in semeda/weights/MODEL_CARD.md are read from there.

VOC's folder holds the 10,582 masks of train_aug. Training sees its even-numbered files. Its held-out
masks are some of the odd-numbered files of which more than 1% is void: those with contours. CamVid's
folder holds trainannot/ and valannot/; some masks of val are held out. Others of the odd-numbered
files and of val were used to choose the settings.
"""
import argparse
import copy
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from semeda.core import command, progress_bar, provenance, read_json, weights_hash, write_json
from semeda.data import camvid
from semeda.edge_net import EdgeNet, edge_f1, edge_recall_by_pair, embeddings, one_hot, soften
from semeda.edge_net_files import SHIPPED, save_edge_net, shipped_edge_net, synthetic_masks, with_void_contours
from semeda.edges import edge_map
from semeda.reading import label_files, read_label

ROOT = Path(__file__).resolve().parent.parent
CLASSES = dict(voc=21, cityscapes=19, camvid=11)
START = dict(voc="cityscapes_v1", cityscapes="cityscapes_v1", camvid="camvid_v1")
STEPS = dict(voc=5000, cityscapes=4000, camvid=3500)
LR, WARM_UP = .004, 200 # of a cosine schedule
BATCH, SIDE = 20, 24 # patches a step, and their side in pixels
NOISY = 1 # of the patches is softened with scale 6 instead of 8
MARGIN, ON_ONE_HOTS = 3., 3. # of the logits on clean one-hots, and the weight of their loss
SOFT_MARGIN = 3. # where softened labels have no edge
RAISED = .25 # the edge logit's bias at the end, since missed edges outnumber false ones
AVERAGE = .005 # weight of a step's weights in the running average
SIZES = dict(voc=(1.65, 7.15, 8.42), cityscapes=(1.72, 7.17, 9.21), camvid=(2.52, 5.15, 8.66)) # mean |psi^l|
CONTOURED = .01 # share of void from which a mask of VOC counts as one with contours
SOFT = [dict(scale=scale, sigma=.2, upsample=upsample) for scale, upsample in ((8., 1), (4., 1), (8., 8))]


def voc_masks(folder, first, step=2):
    "Some of VOC's masks: those with void contours, and every tenth of the others"
    masks = [read_label(path, 21) for path in label_files(folder)[first::step]]
    contoured = [mask for mask in masks if (mask == 255).float().mean() > CONTOURED]
    plain = [mask for mask in masks[::10] if (mask == 255).float().mean() <= CONTOURED]
    return contoured, plain


def thin_masks(classes, count, seed, size=96):
    "Masks of boxes, of lines of 1 to 3 pixels, and of single pixels, each in a random class or void"
    rng = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=rng))

    def paint(mask, label):
        (y, x), width, kind = (draw(0, size), draw(0, size)), draw(1, 4), draw(0, 5)
        if kind == 0:
            mask[y:y + draw(1, 30), x:x + draw(1, 30)] = label
        elif kind < 3:
            (mask if kind == 1 else mask.T)[y:y + width] = label
        elif kind == 3:
            for offset in range(width):
                mask.diagonal(x - y + offset).fill_(label)
        else:
            for _ in range(8):
                mask[draw(0, size), draw(0, size)] = label

    masks = []
    for _ in range(count):
        mask = torch.full((size, size), draw(0, classes), dtype=torch.uint8)
        for _ in range(25):
            mask = mask.flip(draw(0, 2)) # so that diagonals run both ways
            paint(mask, 255 if draw(0, 7) == 0 else draw(0, classes))
        masks.append(mask)
    return masks


def block_masks(classes, count, seed, size=96):
    "Masks of square blocks of 2 to 6 pixels, each in a random class or void"
    rng, masks = torch.Generator().manual_seed(seed), []
    for i in range(count):
        side = (2, 3, 4, 6)[i % 4]
        blocks = torch.randint(classes, (size // side, size // side), generator=rng, dtype=torch.uint8)
        blocks[torch.rand(blocks.shape, generator=rng) < .15] = 255
        masks.append(blocks.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1))
    return masks


def training_masks(name, args):
    "Kinds of masks, each with its share of the patches"
    classes = CLASSES[name]
    shapes, thin = synthetic_masks(classes, 300, seed=0), thin_masks(classes, 200, seed=1)
    kinds = []
    if name == "voc":
        contoured, plain = voc_masks(args.voc, first=0)
        kinds += [(6, contoured), (1, plain), (2, with_void_contours(plain, seed=4))]
    if name == "camvid":
        real = camvid("train", args.camvid).labels
        kinds += [(5, real), (3, with_void_contours(real, seed=4))]
    return kinds + [(3, shapes), (6, with_void_contours(shapes, seed=1)), (3, thin),
                    (4, with_void_contours(thin, seed=3)), (1, block_masks(classes, 60, seed=2))]


def patches(masks, count, rng, at_edges):
    "Squares of masks around edges and void, or around any labelled pixel"
    def draw(high):
        return int(torch.randint(high, (), generator=rng))

    found, each = [], -(-count // len(masks))
    for mask in masks:
        edges, near, anywhere = edge_map(mask) == 1, edge_map(mask, void="label") == 1, mask != 255
        places = [place.nonzero() for place in ((edges, near) if at_edges else (anywhere,)) if place.any()]
        padded = F.pad(mask, [SIDE // 2] * 4, value=255)
        for _ in range(each if places else 0):
            points = places[draw(len(places))]
            point = points[draw(len(points))].tolist()
            top, left = (min(max(0, p + draw(SIDE // 2) - SIDE // 4), n - 1) for p, n in zip(point, mask.shape))
            found.append(padded[top:top + SIDE, left:left + SIDE])
    return torch.stack(found)


def batch(anywhere, at_edges, classes, rng):
    "One-hot masks, the first half of them softened, and their edges; turned and with their classes permuted"
    half = BATCH // 2
    labels = torch.cat([some[torch.randint(len(some), (half,), generator=rng)] for some in (anywhere, at_edges)])
    down, right, turn = (torch.rand(3, generator=rng) < .5).tolist()
    labels = labels.flip([1] * down + [2] * right)
    labels = (labels.mT if turn else labels).contiguous()
    edges, void = edge_map(labels), labels == 255
    order = torch.rand(BATCH, classes, generator=rng).argsort(dim=1)
    labels = order.gather(1, labels.long().masked_fill(void, 0).flatten(1)).view(labels.shape)
    masks = one_hot(labels.masked_fill(void, -1), classes, ignore_index=-1)
    noisy, soft, clean = masks.split([NOISY, half - NOISY, half])
    masks = torch.cat([soften(noisy, 6., generator=rng), soften(soft, 8., generator=rng), clean])
    return masks.contiguous(memory_format=torch.channels_last), edges


def margin_loss(logits, edges):
    "Cross-entropy with a margin, but for edges of the softened half"
    edge = edges == 1
    margins = torch.full(edges.shape, MARGIN)
    margins[:BATCH // 2] = torch.where(edge[:BATCH // 2], 0., SOFT_MARGIN)
    losses = F.softplus(margins - (logits[:, 1] - logits[:, 0]) * torch.where(edge, 1., -1.))
    soft, clean = (half[known].mean() for half, known in zip(losses.chunk(2), (edges != 255).chunk(2)))
    return soft + ON_ONE_HOTS * clean


def rate(step, steps):
    "Share of the largest learning rate"
    return min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def trained(net, kinds, steps, name, seed=0):
    "The average of a net over the last steps of its training"
    rng = torch.Generator().manual_seed(seed)
    anywhere, at_edges = (torch.cat([patches(masks, share * 1000, rng, edges) for share, masks in kinds])
                          for edges in (False, True))
    # with the channels last in memory, a CPU computes these small convolutions twice as fast
    net = copy.deepcopy(net).to(memory_format=torch.channels_last).requires_grad_(True)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(.9, .99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for _ in progress_bar(tqdm, name)(range(steps)):
        masks, edges = batch(anywhere, at_edges, net.num_classes, rng)
        loss = margin_loss(embeddings(masks, net.weights)[-1], edges)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for mean, weight in zip(average.parameters(), net.parameters()):
            mean.lerp_(weight.detach(), AVERAGE)
    return average.to(memory_format=torch.contiguous_format)


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


def resized(net, masks, sizes):
    "The same edges from embeddings of other mean sizes"
    convs = [net.conv1, net.conv2, net.conv3]
    for i, (found, size) in enumerate(zip(mean_embedding(net, masks), sizes)):
        convs[i].weight *= size / found
        convs[i].bias *= size / found
        if i < 2:
            convs[i + 1].weight *= found / size
    return net


def train(name, args):
    "Train a shipped net and write it into the package"
    torch.set_flush_denormal(True)
    start, kinds = shipped_edge_net(START[name]), training_masks(name, args)
    if start.num_classes < CLASSES[name]:
        start = with_more_classes(start, CLASSES[name])
    net = trained(start, kinds, STEPS[name], name)
    finish(resized(net, kinds[0][1][::20], SIZES[name]), name)


def finish(net, name):
    "Raise the edge logit's bias a little and write a net into the package"
    net.conv3.bias[1] += RAISED
    path = ROOT / "semeda" / "weights" / f"edge_net_{name}.safetensors"
    save_edge_net(net, path, num_classes=CLASSES[name], start=START[name], steps=STEPS[name])


def held_out(version, args):
    "Real masks that no net was trained on, with void as it is; none for Cityscapes"
    if version.startswith("voc"):
        return dict(voc=voc_masks(args.voc, first=1)[0][1::8])
    return dict(camvid=camvid("val", args.camvid).labels[1::4]) if version.startswith("camvid") else {}


def masks_for(version, args):
    "Masks of the classes of a net, by kind"
    classes = shipped_edge_net(version).num_classes
    contours = with_void_contours(synthetic_masks(classes, 100, seed=2), seed=9)
    thin = with_void_contours(thin_masks(classes, 60, seed=5), seed=6)
    return held_out(version, args) | dict(synthetic=synthetic_masks(classes, 60, seed=3), contours=contours, thin=thin)


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
    net = net.to(memory_format=torch.channels_last)
    for kind, masks in found.items():
        row["f1"][kind] = edge_f1(net, masks)
        with_edges = [mask for mask in masks if (edge_map(mask) == 1).any()]
        (pair, recall), *_ = edge_recall_by_pair(net, with_edges).items()
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
