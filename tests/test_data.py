import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from semeda.data import CAFFE_MEAN, VOID, TrainingCrops, camvid, cityscapes, draw_scene, load_data, normalise, scenes, voc_aug
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


def test_other_size_is_seen_before_resizing(camvid_folder):
    BAD["other size"][0](camvid_folder)
    with pytest.raises(InputError, match="is 24x18 but its label is 12x12"):
        camvid("val", camvid_folder, size=(12, 9))


@pytest.mark.parametrize("given, words", [
    (dict(dataset="cityscape"), "dataset is 'cityscape'; expected one of scenes, camvid, voc_aug, cityscapes, folder"),
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


def save(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image = Image.fromarray(array, "P") if array.ndim == 2 else image
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def write_voc(root):
    "VOC 2012 and SBD in the public layouts, six images: 1, 2 in VOC train, 3, 4 in VOC val, SBD has 2, 3, 5, 6"
    from scipy.io import savemat
    rng = np.random.default_rng(0)
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "sbd"
    names = [f"2008_00000{i}" for i in range(1, 7)]
    for name in names[:4]:
        save(voc / "JPEGImages" / f"{name}.jpg", rng.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        save(voc / "SegmentationClass" / f"{name}.png", rng.choice([0, 5, 20, 255], (10, 12)).astype(np.uint8), palette=True)
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:2]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[2:4]) + "\n")
    (sbd / "cls").mkdir(parents=True)
    for i in (1, 2, 4, 5):
        save(sbd / "img" / f"{names[i]}.jpg", rng.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        mask = np.full((10, 12), i, np.uint8)
        savemat(sbd / "cls" / f"{names[i]}.mat", {"GTcls": np.array([[(mask, mask)]], dtype=[("Boundaries", "O"), ("Segmentation", "O")])})
    (sbd / "train.txt").write_text("\n".join([names[1], names[4]]) + "\n")
    (sbd / "val.txt").write_text("\n".join([names[2], names[5]]) + "\n")
    return root


def test_voc_aug_computes_its_split(tmp_path):
    root = write_voc(tmp_path)
    train, val = voc_aug("train", root), voc_aug("val", root)
    assert [n[-1] for n in train.files] == ["1", "2", "5", "6"] and [n[-1] for n in val.files] == ["3", "4"]
    on_disk = np.array(Image.open(root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2008_000002.png"))
    assert (train.labels[1].numpy() == on_disk).all() and 255 in on_disk, "an image of both takes VOC's mask"
    assert (train.labels[2] == 4).all() and train.images[2].shape == (3, 10, 12)
    assert train.num_classes == 21 and train.palette[15] == (192, 128, 128) and train.class_names[15] == "person"
    assert voc_aug("train", root, size=(6, 5)).labels[3].shape == (5, 6)


@pytest.mark.parametrize("spoil, words", [
    (lambda r: (r / "sbd" / "cls" / "2008_000005.mat").unlink(), "2008_000005.mat does not exist"),
    (lambda r: (r / "sbd" / "train.txt").unlink(), "has no SBD train in torchvision's layout"),
    (lambda r: (r / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").unlink(), "has no VOC 2012 val"),
    (lambda r: (r / "VOCdevkit").rename(r / "VOC"), "has no VOC 2012 train"),
    (lambda r: (r / "sbd" / "cls" / "2008_000005.mat").write_text("x"), "2008_000005.mat cannot be read as an SBD mask"),
    (lambda r: save(r / "sbd" / "img" / "2008_000005.jpg", np.zeros((7, 8, 3), np.uint8)), "2008_000005.jpg is 8x7 but its label is 12x10; expected the same size"),
    (lambda r: save(r / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000001.jpg", np.zeros((7, 8, 3), np.uint8)), "2008_000001.jpg is 8x7 but its label is 12x10"),
])
def test_voc_aug_bad_files(tmp_path, spoil, words):
    spoil(write_voc(tmp_path))
    with pytest.raises(InputError) as e:
        data = load_data("voc_aug", "train", str(tmp_path))
        list(data.labels)
    assert words in str(e.value) and "\n" not in str(e.value)


def write_cityscapes(root):
    rng = np.random.default_rng(0)
    for split, city, n in (("train", "aachen", 2), ("val", "lindau", 1)):
        for i in range(n):
            name = f"{city}_{i:06}_000019"
            ids = np.kron(rng.integers(0, 34, (4, 8)), np.ones((8, 8))).astype(np.uint8)
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", rng.integers(0, 255, (32, 64, 3), dtype=np.uint8))
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)
            for other in ("instanceIds", "color"):
                save(root / "gtFine" / split / city / f"{name}_gtFine_{other}.png", ids)
            (root / "gtFine" / split / city / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


# id -> train id, from the dataset's own table (cityscapesScripts, labels.py)
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def test_cityscapes(tmp_path):
    root = write_cityscapes(tmp_path)
    data = cityscapes("train", root)
    ids = np.array(Image.open(root / "gtFine" / "train" / "aachen" / "aachen_000001_000019_gtFine_labelIds.png"))
    expected = np.vectorize(lambda i: TRAIN_IDS.get(i, 255))(ids)
    assert len(data) == 2 and (data.labels[1].numpy() == expected).all() and data.num_classes == 19
    assert data.class_names[13] == "car" and data.palette[13] == (0, 0, 142)
    half = cityscapes("val", root, size=(32, 16))
    assert half.images[0].shape == (3, 16, 32) and half.labels[0].shape == (16, 32)


@pytest.mark.parametrize("spoil, words", [
    (lambda f: save(f, np.full((32, 64), 255, np.uint8)), "contain 255; expected 0..33 or -1 (void); Cityscapes is read from its labelIds, not from labelTrainIds"),
    (lambda f: save(f, np.zeros((16, 32), np.uint8)), "leftImg8bit.png is 64x32 but its label is 32x16; expected the same size"),
    (lambda f: save(f, np.zeros((32, 64, 3), np.uint8)), "is a RGB image; expected one channel"),
    (lambda f: f.unlink(), "does not exist"),
])
def test_cityscapes_bad_labels(tmp_path, spoil, words):
    spoil(write_cityscapes(tmp_path) / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png")
    with pytest.raises(InputError) as e:
        list(cityscapes("train", tmp_path).labels)
    assert words in str(e.value)


def test_cityscapes_missing(tmp_path):
    with pytest.raises(InputError, match="has no Cityscapes train in torchvision's layout"):
        load_data("cityscapes", "train", str(tmp_path))


def test_caffe_images_are_bgr_without_scale():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[0] = 255
    assert torch.allclose(normalise(image, style="caffe")[:, 0, 0], torch.tensor([0., 0., 255.]) - torch.tensor(CAFFE_MEAN))


def test_real_camvid():
    data = camvid("val", real_data("camvid"), size=(240, 180))
    assert len(data) == 101 and data.images[0].shape == (3, 180, 240)
    share = torch.stack(data.labels).flatten().bincount(minlength=256) / (101 * 240 * 180)
    assert share[:11].min() > 0 and share[:11].sum() > .9 and (share[3] > .2 or share[1] > .2)
