import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from semeda.data import VOID, TrainingCrops, camvid, draw_scene, load_data, normalise, scenes
from semeda.edges import InputError
from tests.conftest import real_data, write_camvid


def test_scenes_are_a_function_of_their_seed():
    assert all(torch.equal(a, b) for a, b in zip(draw_scene(7), draw_scene(7)))
    assert not torch.equal(draw_scene(7)[0], draw_scene(8)[0])


def test_scenes_hold_what_they_promise():
    data = scenes("train", 200)
    labels = torch.stack(data.labels)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 5, 6, VOID}
    assert .2 < (labels == VOID).flatten(1).any(1).float().mean() < .5
    assert labels.shape[1:] == (96, 96) and data.images[0].dtype == torch.uint8
    assert not set(data.files) & set(scenes("val", 200).files)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_camvid_layout(tmp_path, suffix):
    root = write_camvid(tmp_path, suffix)
    data = camvid("train", root)
    assert len(data) == 3 and data.files[0] == f"0000{suffix}" and data.num_classes == 11
    on_disk = np.array(Image.open(root / "trainannot" / "0001.png"))
    assert (data.labels[1].numpy() == np.where(on_disk == 11, 255, on_disk)).all()
    if suffix == ".png":
        assert (data.images[1].permute(1, 2, 0).numpy() == np.array(Image.open(root / "train" / "0001.png"))).all()
    small = camvid("val", root, size=(12, 6))
    assert small.images[0].shape == (3, 6, 12) and small.labels[0].shape == (6, 12)
    assert set(small.labels[0].unique().tolist()) <= set(camvid("val", root).labels[0].unique().tolist())


def test_fingerprint_follows_the_pixels(tmp_path):
    root = write_camvid(tmp_path)
    before = camvid("train", root).fingerprint
    label = root / "trainannot" / "0002.png"
    mask = np.array(Image.open(label))
    mask[0, 0] = (mask[0, 0] + 1) % 11
    Image.fromarray(mask).save(label)
    assert camvid("train", root).fingerprint != before


def test_crops_do_not_depend_on_workers_or_on_the_global_state():
    data = scenes("train", 10)
    def crops(workers):
        torch.manual_seed(workers)
        return list(DataLoader(TrainingCrops(data, 24, 64, seed=3), batch_size=4, num_workers=workers))
    for (a, b), (c, d) in zip(crops(0), crops(2)):
        assert torch.equal(a, c) and torch.equal(b, d)
    other = TrainingCrops(data, 24, 64, seed=4)[0][0]
    assert not torch.equal(other, TrainingCrops(data, 24, 64, seed=3)[0][0])


def test_image_and_mask_move_together():
    labels = torch.randint(0, 7, (12, 12), dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    data = scenes("train", 1)
    data.images, data.labels = [(labels * 30).expand(3, -1, -1).contiguous()], [labels]
    for k in range(10):
        image, mask = TrainingCrops(data, 10, 80, (1., 1.), seed=0)[k]
        expected = normalise((mask * 30).to(torch.uint8).expand(3, -1, -1))
        known = mask != VOID
        assert known.any() and torch.allclose(image[:, known], expected[:, known])


def break_label(root, value=31):
    path = root / "valannot" / "0001.png"
    mask = np.array(Image.open(path))
    mask[2, 3] = value
    Image.fromarray(mask).save(path)


def truncate(root):
    path = root / "train" / "0002.png"
    path.write_bytes(path.read_bytes()[:-300])


BAD = {
    "missing label": (lambda r: (r / "trainannot" / "0001.png").unlink(), "train/0001.png has no label; expected"),
    "label out of range": (break_label, "valannot/0001.png contain 31; expected 0..10 or 11 (void)"),
    "truncated": (truncate, "train/0002.png cannot be decoded"),
    "no images": (lambda r: [p.unlink() for p in (r / "val").iterdir()], "val has no images"),
    "no folder": (lambda r: (r / "valannot").rename(r / "elsewhere"), "has no folder"),
    "colour label": (lambda r: Image.open(r / "valannot" / "0000.png").convert("RGB").save(r / "valannot" / "0000.png"), "valannot/0000.png is a RGB image; expected one channel"),
    "other size": (lambda r: Image.open(r / "valannot" / "0000.png").resize((12, 12)).save(r / "valannot" / "0000.png"), "is 24x18 but its label is 12x12; expected the same size"),
    "text file": (lambda r: (r / "val" / "0000.png").write_text("hello"), "val/0000.png cannot be decoded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(camvid_folder, case):
    spoil, words = BAD[case]
    spoil(camvid_folder)
    with pytest.raises(InputError) as e:
        for split in ("train", "val"):
            load_data("camvid", split, str(camvid_folder))
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("given, words", [
    (dict(dataset="cityscape"), "dataset is 'cityscape'; expected one of scenes, camvid, folder"),
    (dict(dataset="camvid", data_root="/no/where"), "data_root is '/no/where'"),
    (dict(dataset="camvid"), "data_root is ''"),
    (dict(dataset="folder", data_root="."), "num_classes is 0; expected at least 2"),
])
def test_bad_arguments(given, words):
    with pytest.raises(InputError) as e:
        load_data(split="train", **given)
    assert words in str(e.value)


def test_folder(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(tmp_path / split / "images" / "a.jpg")
        Image.fromarray(rng.choice([0, 1, 2, 255], (9, 8)).astype(np.uint8)).save(tmp_path / split / "labels" / "a.png")
    data = load_data("folder", "train", str(tmp_path), num_classes=3)
    assert len(data) == 1 and data.num_classes == 3 and 255 in data.labels[0]


def test_real_camvid():
    data = camvid("val", real_data("camvid"), size=(240, 180))
    assert len(data) == 101 and data.images[0].shape == (3, 180, 240)
    share = torch.stack(data.labels).flatten().bincount(minlength=256) / (101 * 240 * 180)
    assert share[:11].min() > 0 and share[:11].sum() > .9 and (share[3] > .2 or share[1] > .2)
