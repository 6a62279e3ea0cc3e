"""What the committed run of version 0.1.0, tests/data/run_v1, was made from.

`python -m tests.old_run FOLDER` makes it again. Most weights of its network are one of three values and never trained
(their batch-norm is zero), so that its checkpoint, with momentum and all, packs into a quarter of a MiB; the stem, the
shortcuts and the head are trained.
"""
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from semeda.deeplab import DeepLabV2
from semeda.edge_net import exact_edge_net, save_edge_net

SETTINGS = dict(
    dataset="folder", num_classes=3, loss="semeda", edge_net="edge_net.safetensors", layers=2, iterations=3,
    batch_size=2, crop=24, checkpoint_every=2, log_every=1, val_every=2, max_width=3, device="cpu")


def write_inputs(folder):
    "Photos, labels, initial weights and an Edge net: what the run was started with, in its working directory"
    rng = np.random.default_rng(1)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / "photos" / split / kind).mkdir(parents=True)
        for i in range(count):
            labels = np.kron(rng.integers(0, 3, (3, 4)), np.ones((8, 8))).astype(np.uint8)
            image = (labels[..., None] * 80 + rng.integers(0, 60, (24, 32, 3))).astype(np.uint8)
            Image.fromarray(image).save(folder / "photos" / split / "images" / f"{i}.png")
            Image.fromarray(labels).save(folder / "photos" / split / "labels" / f"{i}.png")
    torch.save(initial_weights(), folder / "initial.pth")
    save_edge_net(exact_edge_net(3), folder / "edge_net.safetensors")


def initial_weights():
    "A ResNet's state_dict of few different values; only stem and shortcuts pass anything on"
    net, state = DeepLabV2(3, "resnet18", 8, 2), {}
    for name, value in net.backbone.state_dict().items():
        n = torch.arange(value.numel()).reshape(value.shape)
        if value.ndim == 4:
            value = ((n * 7 + n // 11) % 3 - 1) * .05
        elif name.endswith("weight"):
            value = torch.full_like(value, float(name == "bn1.weight" or ".downsample." in name))
        state[name] = value
    return state


def pack(checkpoint, packed):
    "The same checkpoint in a compressed archive, which torch.load reads too"
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


if __name__ == "__main__":
    import os

    from semeda.trainer import train
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_inputs(Path("."))
    run = train(None, **SETTINGS, data_root="photos", init_weights="initial.pth", runs="runs", name="run_v1")
    pack(run.folder / "checkpoint.pt", "packed.pt")
    os.replace("packed.pt", run.folder / "checkpoint.pt")
