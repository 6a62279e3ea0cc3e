"""What do all trimap widths cost, beside one width, and beside a loop of dilations?

    python -m benchmarks.trimap [--data-root CAMVID]

Counts the pixels of each class (labelled, predicted, hit) in the band of every width 1..40, over the
validation split of CamVid in the folder CAMVID, or over scenes of the same size. The prediction is the label,
shifted by three pixels. One thread, whose processor time is measured; the ways take turns image by
image, and each time is the median over rounds of the mean over images. Where OpenCV is installed,
also the loop of Boundary IoU's kind for all widths: for each of them an erosion of each class's
mask. The results of all ways are compared before anything is timed. Writes results/bench/trimap.json.
"""
import statistics
import sys
import time
from importlib.util import find_spec

import numpy as np
import scipy
import torch
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from semeda.core import provenance, write_json
from semeda.data import camvid, scenes
from semeda.edges import edge_map, trimap
from semeda.metrics import TrimapIoU, boundary_iou_counts, class_counts, confusion

from .timing import RESULTS, VOID, parse, parser, processor, versions_of

WIDTHS = range(1, 41)
ALL = "all widths 1..40"
SQUARE = np.ones((3, 3), bool)


def pairs_of(args):
    "Predictions and labels as uint8 tensors, the number of classes, and what they are"
    if args.data_root:
        data = camvid("val", args.data_root)
        labels, name = data.labels[:args.images], "CamVid val"
    else:
        data = scenes("val", 12 * min(args.images, 20), size=120)
        tiled = [tile(data.labels[i:i + 12]) for i in range(0, len(data), 12)]
        labels, name = [tiled[i % len(tiled)] for i in range(args.images)], "scenes"
    predictions = [label.roll(3, 1) for label in labels]
    return [(p.masked_fill(p == VOID, 0), l) for p, l in zip(predictions, labels)], data.num_classes, name


def tile(labels):
    "480x360 from twelve labels of 120x120"
    return torch.cat([torch.cat(labels[i:i + 4], 1) for i in (0, 4, 8)])


def metric(max_width, classes):
    metric = TrimapIoU(classes, max_width)
    return lambda prediction, label: metric.update(prediction, label)


def one_wide_band(classes):
    "One width, 40, the way a library without the one pass does it: the band, then its count"
    def run(prediction, label):
        band = label.masked_fill(trimap(label, WIDTHS[-1]) != 1, VOID)
        return confusion(prediction, band, classes)
    return run


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


def erosions(classes):
    """Boundary IoU's counts at all widths, (W, 2, C), with OpenCV

    Intersection and union of what an erosion takes from each class's mask."""
    import cv2
    def contour(mask, width):
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return mask > cv2.erode(framed, SQUARE.astype(np.uint8), iterations=width)[1:-1, 1:-1]
    def run(prediction, label):
        label, counts = label.numpy(), np.zeros((len(WIDTHS), 2, classes), np.int64)
        prediction = np.where(label == VOID, np.uint8(VOID), prediction.numpy())
        for c in range(classes):
            masks = [(x == c).astype(np.uint8) for x in (label, prediction)]
            for i, w in enumerate(WIDTHS):
                a, b = (contour(mask, w) for mask in masks)
                counts[i, :, c] = np.count_nonzero(a & b), np.count_nonzero(a | b)
        return counts
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
    if has_opencv():
        counts = erosions(classes)(*pair)
        for w in WIDTHS:
            assert np.array_equal(counts[w - 1], boundary_iou_counts(*pair, classes, w, void="label").numpy())


def has_opencv():
    if find_spec("cv2") is None:
        return False
    import cv2
    cv2.setNumThreads(1)
    return True


def ways_of(pairs, classes, slow_images):
    "The fast ways by name, and the loops in groups, each with the number of images that it is timed on"
    fast = {"label XOR prediction": memory_floor(pairs), "one width, 1": metric(1, classes),
            "one width, 40": one_wide_band(classes), ALL: metric(WIDTHS[-1], classes)}
    loops = {"40 dilations, each from the edge": dilations(classes),
             "40 dilations, each from the last": dilations(classes, True)}
    groups = [(loops, slow_images)]
    if has_opencv():
        groups.append(({"40 erosions of each class's mask": erosions(classes)}, max(1, slow_images // 5)))
    return fast, groups


def measure_all(pairs, classes, rounds, slow_images):
    "Milliseconds an image of every way, and each relative to the one pass"
    fast, groups = ways_of(pairs, classes, slow_images)
    ms = measure(fast, pairs, rounds)
    ratios = {name: value / ms[ALL] for name, value in ms.items()}
    for slow, images in groups:
        beside = measure({ALL: fast[ALL], **slow}, pairs[:images], min(3, rounds))
        for name in slow:
            ms[name], ratios[name] = beside[name], beside[name] / beside[ALL]
    return ms, ratios


def main(argv=None):
    found = parser("trimap", __doc__, 7, 0.)
    found.add_argument("--images", type=int, default=101)
    found.add_argument("--slow-images", type=int, default=20,
                       help="images for the loops of dilations; a fifth of them for that of erosions")
    args = parse(found, argv)
    if args.device != "cpu":
        found.error("the bands are counted on the CPU; expected --device cpu")
    if args.quick:
        args.images, args.slow_images = 2, 1
    torch.set_num_threads(1)
    pairs, classes, name = pairs_of(args)
    check(pairs[0], classes)
    ms, ratios = measure_all(pairs, classes, args.rounds, args.slow_images)
    height, width = pairs[0][1].shape
    print(f"{name}, {len(pairs)} images of {width}x{height}, {classes} classes, 1 thread")
    for way in ratios:
        print(f"{way:34} {ms[way]:10.3f} ms an image {ratios[way]:9.3f} x")
    if args.quick and args.out is None:
        return 0
    about = dict(data=name, images=len(pairs), size=[width, height], classes=classes, rounds=args.rounds,
                 slow_images=min(args.slow_images, len(pairs)))
    record = dict(about=about, ms_per_image=ms, relative_to_all_widths=ratios, scipy=scipy.__version__,
                  rivals=versions_of("scipy", "opencv-python-headless"), processor=processor(), quick=args.quick)
    write_json((args.out or RESULTS) / "trimap.json", record | provenance())
    return 0


if __name__ == "__main__":
    sys.exit(main())
