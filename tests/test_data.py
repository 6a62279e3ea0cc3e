import numpy as np
import pytest
import torch
from PIL import Image

from semeda.core import InputError
from semeda.data import (
    DATASETS,
    VOID,
    DatasetRecord,
    TrainingCrops,
    camvid,
    cityscapes,
    draw_scene,
    load_data,
    make_split,
    scenes,
    voc_aug,
)
from tests.conftest import real_data, write_camvid


def test_scenes_are_a_function_of_their_seed():
    assert all(torch.equal(a, b) for a, b in zip(draw_scene(7), draw_scene(7)))
    assert not torch.equal(draw_scene(7)[0], draw_scene(8)[0])


def test_scenes_hold_what_they_promise():
    data = scenes("train", 60)
    labels = torch.stack(data.labels)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 5, 6, VOID}
    assert .2 < (labels == VOID).flatten(1).any(1).float().mean() < .5
    assert labels.shape[1:] == (96, 96) and data.images[0].dtype == torch.uint8
    assert not set(data.files) & set(scenes("val", 20).files)


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




def break_label(root, value=31):
    path = root / "valannot" / "0001.png"
    mask = np.array(Image.open(path))
    mask[2, 3] = value
    Image.fromarray(mask).save(path)


def change(path, change_image):
    with Image.open(path) as file:
        changed = change_image(file)
    changed.save(path)


def truncate(root):
    path = root / "train" / "0002.png"
    path.write_bytes(path.read_bytes()[:-300])


BAD = {
    "missing label": (lambda r: (r / "trainannot" / "0001.png").unlink(), "train/0001.png has no label; expected"),
    "label out of range": (break_label, "valannot/0001.png contain 31; expected 0..10 or 11 (void)"),
    "truncated": (truncate, "train/0002.png cannot be decoded"),
    "no images": (lambda r: [p.unlink() for p in (r / "val").iterdir()], "val has no images"),
    "no folder": (lambda r: (r / "valannot").rename(r / "elsewhere"), "has no folder"),
    "colour label": (
        lambda r: change(r / "valannot" / "0000.png", lambda label: label.convert("RGB")),
        "valannot/0000.png is a RGB image; expected one channel"),
    "other size": (
        lambda r: change(r / "valannot" / "0000.png", lambda label: label.resize((12, 12))),
        "is 24x18 but its label is 12x12; expected the same size"),
    "text file": (lambda r: (r / "val" / "0000.png").write_text("hello"), "val/0000.png cannot be decoded"),
    "16-bit image": (
        lambda r: Image.new("I;16", (24, 18), 300).save(r / "val" / "0000.png"),
        "val/0000.png is a I;16 image; expected 8 bits a channel"),
    "two endings of an image": (
        lambda r: Image.new("RGB", (24, 18)).save(r / "train" / "0001.jpg"),
        "train has 0001.jpg and 0001.png; expected one file of each name"),
    "two endings of a label": (
        lambda r: Image.new("L", (24, 18)).save(r / "valannot" / "0001.PNG"),
        "valannot has 0001.PNG and 0001.png; expected one file of each name"),
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
    (dict(dataset="folder", data_root=".", num_classes=256), "num_classes is 256; expected 2..255"),
    (dict(dataset="scenes", data_root="/no/where"), "data_root is '/no/where'; expected nothing for dataset scenes"),
    (dict(dataset="scenes", size=(48, 48)), "image_size is '48x48'; expected nothing for dataset scenes"),
    (dict(dataset="scenes", val_group="scene 1"), "val_group is 'scene 1'; expected nothing for dataset scenes"),
    (dict(dataset="camvid", num_classes=3, data_root="."), "num_classes is 3; expected nothing for dataset camvid"),
    (dict(dataset="cityscapes", val_group="ulm", data_root="."), "val_group is 'ulm'; expected nothing for"),
    (dict(dataset="camvid", download=True, data_root="."), "download is True; expected nothing for dataset camvid"),
    (dict(dataset="no_such_module:load"), "dataset 'no_such_module:load' cannot be imported"),
    (dict(dataset="semeda.data:nothing"), "module semeda.data has no nothing"),
    (dict(dataset="semeda.data:VOC_CLASSES"), "dataset 'semeda.data:VOC_CLASSES' is a list; expected a function"),
    (dict(dataset="builtins:str"), "dataset 'builtins:str'"),
    (dict(dataset="semeda.core:one_line"), "returned a str; expected semeda.data.SegmentationData"),
    (dict(dataset="semeda.splits:check_split"), "failed: AttributeError"),
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
        mask = rng.choice([0, 5, 20, 255], (10, 12)).astype(np.uint8)
        save(voc / "SegmentationClass" / f"{name}.png", mask, palette=True)
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:2]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[2:4]) + "\n")
    (sbd / "cls").mkdir(parents=True)
    for i in (1, 2, 4, 5):
        save(sbd / "img" / f"{names[i]}.jpg", rng.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        mask = np.full((10, 12), i, np.uint8)
        content = np.array([[(mask, mask)]], dtype=[("Boundaries", "O"), ("Segmentation", "O")])
        savemat(sbd / "cls" / f"{names[i]}.mat", {"GTcls": content})
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


def other_picture(*parts):
    "Put a picture of another size there"
    return lambda root: save(root.joinpath(*parts), np.zeros((7, 8, 3), np.uint8))


VOC2012 = ("VOCdevkit", "VOC2012")


@pytest.mark.parametrize("spoil, words", [
    (lambda r: (r / "sbd" / "cls" / "2008_000005.mat").unlink(), "2008_000005.mat does not exist"),
    (lambda r: (r / "sbd" / "train.txt").unlink(), "has no SBD train in torchvision's layout"),
    (lambda r: r.joinpath(*VOC2012, "ImageSets", "Segmentation", "val.txt").unlink(), "has no VOC 2012 val"),
    (lambda r: (r / "VOCdevkit").rename(r / "VOC"), "has no VOC 2012 train"),
    (lambda r: (r / "sbd" / "cls" / "2008_000005.mat").write_text("x"), "000005.mat cannot be read as an SBD mask"),
    (other_picture("sbd", "img", "2008_000005.jpg"), "2008_000005.jpg is 8x7 but its label is 12x10; expected the"),
    (other_picture(*VOC2012, "JPEGImages", "2008_000001.jpg"), "2008_000001.jpg is 8x7 but its label is 12x10"),
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
            photo = rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", photo)
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)
            for other in ("instanceIds", "color"):
                save(root / "gtFine" / split / city / f"{name}_gtFine_{other}.png", ids)
            (root / "gtFine" / split / city / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


# id -> train id, from the dataset's own table (cityscapesScripts, labels.py)
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}


def test_cityscapes(tmp_path):
    root = write_cityscapes(tmp_path)
    data = cityscapes("train", root)
    folder = root / "gtFine" / "train" / "aachen"
    ids = np.array(Image.open(folder / "aachen_000001_000019_gtFine_labelIds.png"))
    expected = np.vectorize(lambda i: TRAIN_IDS.get(i, 255))(ids)
    assert len(data) == 2 and (data.labels[1].numpy() == expected).all() and data.num_classes == 19
    assert data.class_names[13] == "car" and data.palette[13] == (0, 0, 142)
    half = cityscapes("val", root, size=(32, 16))
    assert half.images[0].shape == (3, 16, 32) and half.labels[0].shape == (16, 32)


@pytest.mark.parametrize("spoil, words", [
    (lambda f: save(f, np.full((32, 64), 255, np.uint8)),
     "contain 255; expected 0..33 or -1 (void); Cityscapes is read from its labelIds, not from labelTrainIds"),
    (lambda f: save(f, np.zeros((16, 32), np.uint8)), "is 64x32 but its label is 32x16; expected the same size"),
    (lambda f: save(f, np.zeros((32, 64, 3), np.uint8)), "is a RGB image; expected one channel"),
    (lambda f: f.unlink(), "does not exist"),
])
def test_cityscapes_bad_labels(tmp_path, spoil, words):
    folder = write_cityscapes(tmp_path) / "gtFine" / "train" / "aachen"
    spoil(folder / "aachen_000000_000019_gtFine_labelIds.png")
    with pytest.raises(InputError) as e:
        list(cityscapes("train", tmp_path).labels)
    assert words in str(e.value)


def test_cityscapes_missing(tmp_path):
    with pytest.raises(InputError, match="has no Cityscapes train in torchvision's layout"):
        load_data("cityscapes", "train", str(tmp_path))



def test_real_camvid():
    data = camvid("val", real_data("camvid"), size=(240, 180))
    assert len(data) == 101 and data.images[0].shape == (3, 180, 240)
    share = torch.stack(data.labels).flatten().bincount(minlength=256) / (101 * 240 * 180)
    assert share[:11].min() > 0 and share[:11].sum() > .9 and (share[3] > .2 or share[1] > .2)


def write_class_aug(root, style="list"):
    "SegmentationClassAug as train_aug is usually passed on: 1, 2, 5 to train on, 3 and 4 to validate on"
    base = root.joinpath(*VOC2012)
    rng = np.random.default_rng(0)
    for i in range(1, 6):
        name = f"2008_00000{i}"
        save(base / "JPEGImages" / f"{name}.jpg", rng.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        save(base / "SegmentationClassAug" / f"{name}.png", np.array([[0, 15, 255] * 4] * 10, np.uint8))
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000003\n2008_000004\n")
    if style == "list":
        (lists / "trainaug.txt").write_text("2008_000001\n2008_000005\n")
    if style == "paths":
        lines = [f"/JPEGImages/2008_00000{i}.jpg /SegmentationClassAug/2008_00000{i}.png" for i in (1, 5)]
        (lists / "train_aug.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("style, train", [("list", "15"), ("paths", "15"), ("none", "125")])
def test_segmentation_class_aug(tmp_path, style, train):
    root = write_class_aug(tmp_path, style)
    splits = {split: load_data("voc_aug", split, str(root)) for split in ("train", "val")}
    assert "".join(name[-1] for name in splits["train"].files) == train
    assert [name[-1] for name in splits["val"].files] == ["3", "4"]
    assert splits["train"].class_names[15] == "person" and splits["train"].palette[15] == (192, 128, 128)
    assert splits["train"].labels[0][0].tolist() == [0, 15, 255] * 4
    assert load_data("voc_aug", "train", str(root), size=(6, 5)).labels[0].shape == (5, 6)


def test_segmentation_class_aug_validates_on_vocs_own_masks_where_they_are(tmp_path):
    base = write_class_aug(tmp_path).joinpath(*VOC2012)
    for name in ("2008_000003", "2008_000004"):
        save(base / "SegmentationClass" / f"{name}.png", np.full((10, 12), 7, np.uint8))
    assert (voc_aug("val", tmp_path).labels[0] == 7).all() and (voc_aug("train", tmp_path).labels[0] != 7).all()


def test_segmentation_class_aug_in_colours(tmp_path):
    base = write_class_aug(tmp_path).joinpath(*VOC2012)
    colours = np.array([(0, 0, 0), (192, 128, 128), (224, 224, 192)] * 4, np.uint8)
    save(base / "SegmentationClassAug" / "2008_000001.png", np.broadcast_to(colours, (10, 12, 3)).copy())
    assert voc_aug("train", tmp_path).labels[0][0].tolist() == [0, 15, 255] * 4


@pytest.mark.parametrize("spoil, words", [
    (lambda b: (b / "ImageSets" / "Segmentation" / "val.txt").unlink(), "val.txt cannot be read"),
    (lambda b: (b / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("2008_000003\n2008_000001\n"),
     "trainaug.txt holds 2008_000003, which"),
    (lambda b: (b / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n"), "has no images of VOC train"),
    (lambda b: (b / "JPEGImages" / "2008_000001.jpg").unlink(), "2008_000001.jpg does not exist"),
    (lambda b: save(b / "SegmentationClassAug" / "2008_000001.png", np.full((10, 12), 21, np.uint8)),
     "2008_000001.png contain 21; expected 0..20 or 255 (void)"),
])
def test_segmentation_class_aug_bad_files(tmp_path, spoil, words):
    spoil(write_class_aug(tmp_path).joinpath(*VOC2012))
    with pytest.raises(InputError) as e:
        list(load_data("voc_aug", "train", str(tmp_path)).labels)
    assert words in str(e.value) and "\n" not in str(e.value)


def drives(root):
    "CamVid with two drives in its training folder and a third, with the second, in its validation folder"
    write_camvid(root)
    for split, names in (("train", ("a_0", "a_1", "b_0")), ("val", ("b_1", "c_0"))):
        for i, name in enumerate(names):
            for folder in (split, f"{split}annot"):
                (root / folder / f"{i:04}.png").rename(root / folder / f"{name}.png")
    return root


@pytest.mark.parametrize("group, train, val", [
    ("a", ["b_0", "b_1", "c_0"], ["a_0", "a_1"]),
    ("b", ["a_0", "a_1", "c_0"], ["b_0", "b_1"]),
    ("c_0", ["a_0", "a_1", "b_0", "b_1"], ["c_0"]),
])
def test_val_group(tmp_path, group, train, val):
    root = drives(tmp_path)
    halves = [camvid(split, root) for split in ("train", "val")]
    whole = {name: image for half in halves for name, image in zip(half.files, half.images)}
    for split, expected in (("train", train), ("val", val)):
        data = load_data("camvid", split, str(root), val_group=group)
        assert data.files == [f"{name}.png" for name in expected]
        assert all(torch.equal(image, whole[name]) for name, image in zip(data.files, data.images))


@pytest.mark.parametrize("group, words", [
    ("d", "val_group is 'd', but no file's name begins so; names begin with a, b, c"),
    ("_", "val_group is '_', but no file's name begins so; names begin with a, b, c"),
])
def test_val_group_that_divides_nothing(tmp_path, group, words):
    for split in ("train", "val"):
        with pytest.raises(InputError) as e:
            load_data("camvid", split, str(drives(tmp_path / split)), val_group=group)
        assert words in str(e.value)


def test_val_group_of_all_and_of_names_in_both(tmp_path):
    root = write_camvid(tmp_path)
    with pytest.raises(InputError, match="but train and val both hold 0000.png, 0001.png; expected different names"):
        camvid("train", root, val_group="0001")
    for folder in ("val", "valannot"):
        for name in ("0000", "0001"):
            (root / folder / f"{name}.png").rename(root / folder / f"0{name}.png")
    with pytest.raises(InputError, match="val_group is '0', but every file's name begins so; names begin with 0000"):
        camvid("train", root, val_group="0")


def test_val_group_that_is_a_sub_folder_and_begins_another(tmp_path):
    for kind in ("images", "labels"):
        for name in ("street1/a", "street10/b", "street2/c"):
            save(tmp_path / "train" / kind / f"{name}.png", np.eye(4, 5, dtype=np.uint8) if kind == "labels" else
                 np.zeros((4, 5, 3), np.uint8))
    files = lambda group: load_data("folder", "val", str(tmp_path), num_classes=2, val_group=group).files
    with pytest.warns(UserWarning, match="is 'street1', which is a sub-folder, and street10/b.png begins so too and"):
        assert files("street1") == ["street1/a.png", "street10/b.png"]
    assert files("street1/") == ["street1/a.png"] and files("street2") == ["street2/c.png"]


def test_val_group_of_a_folder_dataset(tmp_path):
    for split, name in (("train", "x-1"), ("val", "y-1")):
        save(tmp_path / split / "images" / f"{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        save(tmp_path / split / "labels" / f"{name}.png", np.eye(4, 5, dtype=np.uint8))
    for split, expected in (("train", "y-1.jpg"), ("val", "x-1.jpg")):
        assert load_data("folder", split, str(tmp_path), num_classes=2, val_group="x").files == [expected]


def test_sub_folders_of_a_folder_dataset(tmp_path):
    for split, name in (("train", "a"), ("train", "b/a"), ("train", "b/c/d"), ("val", "e/a")):
        save(tmp_path / split / "images" / f"{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        save(tmp_path / split / "labels" / f"{name}.png", np.eye(4, 5, dtype=np.uint8))
    load = lambda split, **more: load_data("folder", split, str(tmp_path), num_classes=2, **more).files
    assert load("train") == ["a.jpg", "b/a.jpg", "b/c/d.jpg"] and load("val") == ["e/a.jpg"]
    assert load("val", val_group="b/") == ["b/a.jpg", "b/c/d.jpg"]
    with pytest.raises(InputError, match="no file's name begins so; names begin with a, b, e"):
        load("val", val_group="x")
    save(tmp_path / "train" / "labels" / "b" / "f.png", np.eye(4, 5, dtype=np.uint8))
    with pytest.raises(InputError, match="label .*/b/f.png has no image"):
        load("train")


def two_squares(split, size=(4, 3), **settings):
    "A dataset of a user's own"
    width, height = size
    image, mask = torch.zeros(3, height, width, dtype=torch.uint8), torch.ones(height, width, dtype=torch.uint8)
    return make_split(f"squares {sorted(settings)}", [image] * 2, [mask] * 2, ["nothing", "square"])


def test_a_dataset_of_a_users_own(tmp_path):
    data = load_data("tests.test_data:two_squares", "train")
    assert data.images[0].shape == (3, 3, 4) and data.name == "squares []" and data.files == ["0", "1"]
    data = load_data("tests.test_data:two_squares", "train", str(tmp_path), size=(6, 5))
    assert data.images[0].shape == (3, 5, 6) and data.name == "squares ['root']"
    DATASETS.register("squares", DatasetRecord("squares", two_squares))
    try:
        assert load_data("squares", "val").num_classes == 2
    finally:
        del DATASETS["squares"]


@pytest.mark.parametrize("change, words", [
    (dict(labels=[torch.ones(3, 4, dtype=torch.uint8)]), "has 2 images, 1 masks and 2 names; expected the same"),
    (dict(images=[], labels=[]), "has 0 images, 0 masks and 0 names"),
    (dict(labels=[torch.ones(3, 4)] * 2), "mask 0 of dataset test is torch.float32 of shape (3, 4); expected uint8"),
    (dict(labels=[torch.ones(4, 3, dtype=torch.uint8)] * 2), "mask 0 of dataset test is torch.uint8 of shape (4, 3)"),
    (dict(images=[torch.zeros(3, 4, dtype=torch.uint8)] * 2), "image 0 of dataset test is torch.uint8 of shape (3, 4)"),
    (dict(labels=[torch.full((3, 4), 2, dtype=torch.uint8)] * 2), "mask 0 of dataset test contains 2; expected 0..1"),
    (dict(class_names=[str(i) for i in range(256)]), "num_classes is 256; expected 1..255"),
])
def test_make_split_checks(change, words):
    images = [torch.zeros(3, 3, 4, dtype=torch.uint8)] * 2
    given = dict(name="test", images=images, labels=[torch.ones(3, 4, dtype=torch.uint8)] * 2, class_names=["a", "b"])
    with pytest.raises(InputError) as e:
        make_split(**given | change)
    assert words in str(e.value)


def test_one_split_is_enough_for_a_group(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for name in ("a1", "a2", "b1"):
            save(tmp_path / "train" / kind / f"{name}.png", np.eye(8, dtype=np.uint8))
    found = {split: load_data("folder", split, tmp_path, 2, val_group="b").files for split in ("train", "val")}
    assert found == dict(train=["a1.png", "a2.png"], val=["b1.png"])
    with pytest.raises(InputError, match="data_root has no folder .*val"):
        load_data("folder", "val", tmp_path, 2)


@pytest.mark.parametrize("values, told", [
    ((0, 255), "hold class 0 alone and void, which is 255; expected two classes or more, numbered from 0"),
    ((255, 255), "hold no class alone and void, which is 255"),
    ((1, 1), "hold class 1 alone; expected two classes"),
])
def test_masks_with_nothing_to_tell_apart_are_refused(tmp_path, values, told):
    "Such as masks of 0 and 255, where the object would be void"
    for kind, pixels in (("images", values), ("labels", values)):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.fromarray(np.array([pixels], np.uint8)).save(tmp_path / "train" / kind / "a.png")
    with pytest.raises(InputError, match=told):
        load_data("folder", "train", tmp_path, num_classes=2)


@pytest.mark.parametrize("values, told", [
    ((0, 255), "hold class 0 alone and void, which is 255"), ((255, 255), "hold no class alone and void"), ((1, 1), ""),
])
def test_validation_masks_that_tell_nothing_are_refused(tmp_path, values, told):
    "Such as those that were left at 0 and 255 while training masks are of 0 and 1"
    for kind in ("images", "labels"):
        save(tmp_path / "val" / kind / "a.png", np.array([values], np.uint8))
    if told:
        with pytest.raises(InputError, match=told):
            load_data("folder", "val", tmp_path, num_classes=2)
    else:
        assert len(load_data("folder", "val", tmp_path, num_classes=2)) == 1


def test_a_loop_over_training_crops_ends():
    "Python asks for one item after the other until there is an IndexError"
    assert len([crop for crop in TrainingCrops(scenes("train", 2, size=32), 3, 16)]) == 3


@pytest.mark.parametrize("colour", [(.5, 0, 0), (300, 0, 0), (0, 0), (-1, 0, 0)])
def test_colours_that_are_none_are_refused(colour):
    image, label = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match="dataset mine has the colour .*; expected three whole numbers 0..255"):
        make_split("mine", [image], [label], ["a", "b"], [(0, 0, 0), colour])
    assert make_split("mine", [image], [label], ["a", "b"], [(0, 0, 0), np.array([255, 0, 1])]).num_classes == 2
