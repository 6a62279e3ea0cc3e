"""From photographs and masks of your own to a network that runs without semeda, in nine commands.

    python examples/your_photos.py PHOTOS NEW OUT --classes 3

PHOTOS holds train/images, train/labels, val/images and val/labels: a mask is a PNG of class numbers with its photo's
name, 255 where a pixel shall not count. NEW holds images and labels of photographs that the network has not seen.
OUT is made. Further parameters, such as --iterations 5000, --image-size 640x480 or --network smp.FPN, go to semeda-train;
the network is one of segmentation-models-pytorch. Each command is printed before it runs, so that it can be typed
instead. It needs pip install 'semeda[peers]'.
"""
import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors import safe_open

import semeda.evaluate
import semeda.predict
import semeda.trainer
from semeda.reading import files_by_name

LOSSES = dict(ppce="ppce", edges="lovasz+trimap_lovasz")  # the usual one, and one that gains at boundaries


def run(name, main, *arguments):
    "Print a command and run it"
    print("\n$", shlex.join([name, *map(str, arguments)]), flush=True)
    status = main(list(map(str, arguments)))
    if status:
        sys.exit(status)


def train(photos, out, classes, settings):
    "Two networks, one for each loss"
    for name, loss in LOSSES.items():
        run("semeda-train", semeda.trainer.main, "--dataset", "folder", "--data-root", photos, "--num-classes", classes,
            "--network", "smp.Unet", "--loss", loss, "--batch-norm", "trained", "--runs", out / "runs", "--name", name,
            *settings)


def predict_and_score(new, out, classes):
    "Masks of the new photographs, and how good they are"
    for name in LOSSES:
        masks = out / f"masks_{name}"
        run("semeda-predict", semeda.predict.main, out / "runs" / name, new / "images", masks, "--overlay")
        run("semeda-evaluate", semeda.evaluate.main, "--pred", masks, "--label", new / "labels", "--classes", classes,
            "--max-width", 5, "--out", out / f"scores_{name}")
    run("semeda-evaluate", semeda.evaluate.main, "compare", *(out / f"scores_{name}" for name in LOSSES))


def export(out):
    "The second network for use elsewhere: its weights alone, and a program of PyTorch's"
    for kind, file in (("safetensors", "unet.safetensors"), ("torchscript", "unet.pt")):
        run("semeda-predict", semeda.predict.main, out / "runs" / "edges", out / file, "--export", kind)


def mask_by_smp(weights, photo):
    "The class numbers of a photograph by segmentation-models-pytorch and safetensors alone"
    with safe_open(weights, "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    build, settings = getattr(smp, about["network"].removeprefix("smp.")), about["settings"]
    net = build(settings["backbone"], encoder_weights=None, classes=len(about["classes"])).eval()
    net.load_state_dict(tensors)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return net(((pixels - mean) / std)[None]).argmax(dim=1)[0]


def mask_by_torch(program, photo):
    "The same by PyTorch alone"
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()
    with torch.no_grad():
        return torch.jit.load(program)(pixels[None]).argmax(dim=1)[0]


def main(argv=None):
    "Train, predict, score, compare, export, and run without semeda"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for place in ("photos", "new", "out"):
        parser.add_argument(place, type=Path)
    parser.add_argument("--classes", type=int, required=True)
    args, settings = parser.parse_known_args(argv)
    train(args.photos, args.out, args.classes, settings)
    predict_and_score(args.new, args.out, args.classes)
    export(args.out)

    first = next(iter(files_by_name(args.new / "images").values()))
    with Image.open(first) as file:
        photo = file.convert("RGB")
    sides = [side // 32 * 32 for side in photo.size]  # a U-Net halves its images five times
    photo = photo.crop((0, 0, *sides))
    by_smp = mask_by_smp(args.out / "unet.safetensors", photo)
    by_torch = mask_by_torch(str(args.out / "unet.pt"), photo)
    print(f"\n{first.name} without semeda: {len(by_smp.unique())} classes; the two agree on "
          f"{100 * (by_smp == by_torch).float().mean():.2f}% of the pixels")


if __name__ == "__main__":
    main()
