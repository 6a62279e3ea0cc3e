import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from semeda import evaluate, predict, trainer
from semeda.data import draw_scene
from semeda.predict import load_network, predict_image
from tests.conftest import ROOT

FEW = "--iterations 3 --batch-size 2 --crop 32 --val-every 0 --max-width 3 --device cpu".split()


def write_photos(folder, seeds, size=64, classes=3):
    "Scenes as photographs with masks"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in seeds:
        image, labels = draw_scene(seed, size)
        labels = torch.where(labels == 255, labels, labels.clamp(max=classes - 1))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "images" / f"{seed}.png")
        Image.fromarray(labels.numpy()).save(folder / "labels" / f"{seed}.png")


def test_your_photos(tmp_path, capsys):
    pytest.importorskip("segmentation_models_pytorch", reason="needs pip install 'semeda[peers]'")
    spec = importlib.util.spec_from_file_location("your_photos", ROOT / "examples" / "your_photos.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    write_photos(tmp_path / "photos" / "train", range(4))
    write_photos(tmp_path / "photos" / "val", range(10, 12))
    write_photos(tmp_path / "new", range(20, 23))
    out = tmp_path / "out"
    example.main([str(tmp_path / "photos"), str(tmp_path / "new"), str(out), "--classes", "3", *FEW])
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("$")] == (
        ["semeda-train"] * 2 + ["semeda-predict", "semeda-evaluate"] * 2 + ["semeda-evaluate"] + ["semeda-predict"] * 2)
    assert "the two agree on 100.00% of the pixels" in shown
    assert (out / "scores_edges" / "metrics.json").is_file() and (out / "masks_edges" / "20_overlay.jpg").is_file()
    network = load_network(out / "runs" / "edges")
    photo = Image.open(tmp_path / "new" / "images" / "20.png")
    mask = predict_image(network.net, photo)
    assert np.array_equal(np.array(Image.open(out / "masks_edges" / "20.png")), mask.numpy())
    assert torch.equal(example.mask_by_smp(out / "unet.safetensors", photo), mask.long())


def write_cityscapes(root, size=(64, 32)):
    "A tiny dataset in the public structure of Cityscapes"
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind / split / "ulm").mkdir(parents=True)
        for i in range(count):
            name = f"ulm_{i:06}_000019"
            ids = np.kron(rng.choice([0, 4, 7, 8, 11, 23, 26, 33], (4, 8)), np.ones((8, 8))).astype(np.uint8)
            image = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png")
            Image.fromarray(ids).save(root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png")
    return root


def test_the_cityscapes_layout(tmp_path, capsys):
    root = write_cityscapes(tmp_path / "cityscapes")
    small = ["--backbone", "resnet18", "--layers", "2", "--style", "torchvision", "--image-size", "64x32"]
    train = ["--dataset", "cityscapes", "--data-root", root, "--loss", "ppce", "--runs", tmp_path, "--name", "run"]
    assert trainer.main([str(a) for a in (*train, *small, *FEW)]) == 0
    masks, photos = tmp_path / "masks", root / "leftImg8bit" / "val"
    assert predict.main([str(tmp_path / "run"), str(photos), str(masks)]) == 0
    run, opened = trainer.load_run(tmp_path / "run", data_root=str(root)), load_network(tmp_path / "run")
    assert opened.class_names == run.val_data.class_names and opened.image_size == (64, 32)
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 96, 3), dtype=np.uint8))
    photo.save(tmp_path / "x.png")
    expected = predict_image(opened.net, photo, opened.style, opened.image_size)
    assert torch.equal(run.predict(tmp_path / "x.png"), expected) and expected.shape == (48, 96)
    assert torch.equal(run.predict(np.array(photo), tile=32), predict_image(opened.net, photo, tile=32))
    files = dict(pred=masks, label=root / "gtFine" / "val", out=tmp_path / "scores")
    folders = [str(a) for name, path in files.items() for a in (f"--{name}", path)]
    layout = ["--pred-suffix", "_leftImg8bit", "--label-suffix", "_gtFine_labelIds", "--label-map", "cityscapes"]
    assert evaluate.main([*folders, *layout, "--classes", "19", "--max-width", "3"]) == 0
    assert "2 images" in capsys.readouterr().out.splitlines()[-1]
