"""How long does an edge map take, beside OpenCV, SciPy and scikit-image?

    python -m benchmarks.edge_maps [--device cuda]

`semeda.edges.edge_map` of uint8 labels at 321x321, 1024x512 and 2048x1024: smooth regions of 19 classes, without
void, and with some. A pixel of ours is an edge where one of its 8 neighbours has another class; that is where the
largest label of the 3x3 pixels around is not the smallest, so OpenCV's and SciPy's dilation and erosion give the
same map, and so does scikit-image's `find_boundaries` with connectivity 2 and mode "thick". Void that
does not count is 0 for the dilation and 255 for the erosion; `find_boundaries` cannot leave it out. All
maps are compared before anything is timed. On the CPU with one thread and with two, of PyTorch and of OpenCV (SciPy and
scikit-image have one), whatever --threads says; on a GPU ours alone. A turn is five calls in a row, as for the masks
of a batch.

The floor is a copy of the labels on the same device, the fastest of all rounds at a size. The extra `semeda[bench]`
holds OpenCV and scikit-image.
Writes results/bench/edge_maps-DEVICE.json.
"""
import sys
import warnings

import numpy as np
import torch
from scipy import ndimage

from semeda.edges import edge_map

from .timing import VOID, parse, parser, regions, rows_of, show, take_turns, write

SIZES = [(321, 321), (512, 1024), (1024, 2048)] # height, width
CLASSES, SQUARE = 19, np.ones((3, 3), np.uint8)
OURS, FLOOR, SKIMAGE = "semeda edge_map", "copy of the labels", "scikit-image find_boundaries"


def opencv(labels, void):
    "As bytes throughout, which OpenCV handles fastest"
    import cv2
    labels = labels.numpy()
    if not void: return lambda: cv2.dilate(labels, SQUARE) != cv2.erode(labels, SQUARE)
    def way():
        unknown = cv2.compare(labels, VOID, cv2.CMP_EQ)
        differ = cv2.compare(cv2.dilate(cv2.subtract(labels, unknown), SQUARE), cv2.erode(labels, SQUARE), cv2.CMP_NE)
        return cv2.bitwise_or(cv2.bitwise_and(differ, 1), unknown)
    return way


def scipy_filters(labels, void):
    labels = labels.numpy()
    if not void:
        return lambda: (
            ndimage.maximum_filter(labels, 3, mode="nearest") != ndimage.minimum_filter(labels, 3, mode="nearest")
        )
    def way():
        unknown = labels == VOID
        differ = ndimage.maximum_filter(
            np.where(unknown, np.uint8(0), labels), 3, mode="nearest"
        ) != ndimage.minimum_filter(labels, 3, mode="nearest")
        return np.where(unknown, np.uint8(VOID), differ)
    return way


def scikit_image(labels):
    from skimage.segmentation import find_boundaries
    labels = labels.numpy()
    return lambda: find_boundaries(labels, connectivity=2, mode="thick")


def ways_of(labels, void, device):
    "Our way and the rivals', and why some rival is not there"
    on_device, copy = labels.to(device), torch.empty_like(labels, device=device)
    ways, missing = {OURS: lambda: edge_map(on_device)}, {}
    if device == "cpu":
        for name, make in {
            "OpenCV dilate != erode": lambda: opencv(labels, void),
            "SciPy maximum != minimum filter": lambda: scipy_filters(labels, void),
            SKIMAGE: lambda: scikit_image(labels),
        }.items():
            if void and name == SKIMAGE: missing[name] = "cannot: counts void as a class"
            else:
                try: ways[name] = make()
                except ImportError: missing[name] = "not installed: pip install 'semeda[bench]'"
    return ways, {FLOOR: lambda: copy.copy_(on_device)}, missing


def check(ways):
    "All maps are the same"
    maps = {name: torch.as_tensor(way()).to("cpu", torch.uint8) for name, way in ways.items()}
    for name, found in maps.items(): assert torch.equal(found, maps[OURS]), f"{name} gives another edge map"


def set_threads(count):
    torch.set_num_threads(count)
    try:
        import cv2
        cv2.setNumThreads(count)
    except ImportError: warnings.warn("OpenCV is not installed; expected pip install 'semeda[bench]'", stacklevel=2)


def main(argv=None):
    args, rows = parse(parser("edge_maps", __doc__, 400, 30.), argv), []
    for threads in (1, 2) if args.device == "cpu" else (args.threads,):
        set_threads(threads)
        for height, width in [(33, 47)] if args.quick else SIZES:
            found, least = [], float("inf")
            for void in (False, True):
                ways, floor, missing = ways_of(regions((height, width), CLASSES, void=void), void, args.device)
                check(ways)
                times = take_turns(ways | floor, args, calls=1 if args.quick else 5)
                case = f"{width}x{height}, {'some' if void else 'no'} void, " + (
                    f"{threads} thread{'s' * (threads > 1)}" if args.device == "cpu" else "GPU"
                )
                least = min(least, *times[FLOOR])
                found += rows_of(case, times, OURS) + [
                    dict(case=case, way=name, ms=None, note=note) for name, note in missing.items()
                ]
            rows += [row | dict(floor_ms=least, times_floor=row["ms"] / least) if row["ms"] else row for row in found]
    set_threads(args.threads)
    show(f"edge map, {args.device}", rows)
    write("edge_maps", args, rows, ["opencv-python-headless", "scikit-image", "scipy"], classes=CLASSES)
    return 0


if __name__ == "__main__": sys.exit(main())
