import json
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from semeda import export, predict
from semeda.core import InputError, import_own, weights_hash
from semeda.data import CAMVID_CLASSES, CAMVID_PALETTE, draw_scene
from semeda.networks import NETWORKS, ExternalNetwork, build_network
from semeda.optimise import parameter_groups
from semeda.predict import load_network, main, predict_image
from semeda.segment import as_photo, predict_images, predict_tiles, tile_starts
from semeda.sieve import sieve
from semeda.trained import TrainedNetwork, save_network
from tests.conftest import ROOT, snapshot

SETTINGS = dict(backbone="resnet18", layers=2, output_stride=4, batch_norm="trained", style="torchvision")
CONFIG = dict(dataset="camvid", network="deeplab_v2", loss="ppce", crop=40, image_size="48x36", **SETTINGS)


def write_run(folder, config=CONFIG, net=None, **state):
    "A run folder as training leaves it"
    torch.manual_seed(0)
    net = net or build_network("deeplab_v2", 11, **SETTINGS)
    folder.mkdir(parents=True)
    torch.save(dict(step=3, net=net.state_dict(), optimizer={}, **state), folder / "checkpoint.pt")
    (folder / "config.json").write_text(json.dumps(dict(config=config)))
    (folder / "metrics.json").write_text(json.dumps(dict(final_weights=weights_hash(net))))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "camvid-ppce-s0")


@pytest.fixture(scope="module")
def network(run):
    return load_network(run)


def scene(seed, width=60, height=44):
    "A photo as Pillow has it"
    return Image.fromarray(draw_scene(seed, max(width, height))[0].permute(1, 2, 0).numpy()[:height, :width])


def huge_png(path, side=50000):
    "A file of a hundred bytes that would be a picture of gigabytes"
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def lines_of(text):
    "What a terminal shows of each line"
    return [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]


def test_a_run_opens_without_its_dataset(network, run):
    assert network.class_names == CAMVID_CLASSES and network.palette == CAMVID_PALETTE
    assert (network.image_size, network.crop, network.style, network.source) == (
        (48, 36),
        40,
        "torchvision",
        str(run / "checkpoint.pt"),
    )
    assert not network.net.training and not any(p.requires_grad for p in network.net.parameters())


def test_a_run_of_version_0_1():
    old = load_network(ROOT / "tests" / "data" / "run_v1")
    assert old.class_names == ["class 0", "class 1", "class 2"] and old.image_size is None and old.crop == 24
    assert predict_image(old.net, np.zeros((20, 30, 3), np.uint8), old.style, old.image_size).shape == (20, 30)


def test_names_and_colours_travel_with_the_checkpoint(tmp_path):
    names, palette = [f"part {i}" for i in range(11)], [[i, 2 * i, 3 * i] for i in range(11)]
    config = CONFIG | dict(image_size="", crop=33, dataset="my.module:data")
    folder = write_run(tmp_path / "run", config=dict(dataset="scenes"), class_names=names, palette=palette)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(saved | dict(config=config), folder / "checkpoint.pt")
    (folder / "config.json").unlink()
    opened = load_network(folder)
    assert opened.class_names == names and opened.palette == [tuple(c) for c in palette]
    assert (opened.image_size, opened.crop) == (None, 33)


def change(**state):
    "Put something else into a checkpoint"
    def write(folder):
        path = folder / "checkpoint.pt"
        torch.save(torch.load(path, weights_only=True) | state, path)
    return write


def not_finite(folder):
    path = folder / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    saved["net"]["head.branches.0.bias"][0] = float("nan")
    torch.save(saved, path)


@pytest.mark.parametrize("damage, words", [
    (lambda f: shutil.rmtree(f), "does not exist; expected a run folder or a .safetensors file"),
    (lambda f: (f / "checkpoint.pt").unlink(), "has no checkpoint.pt; expected a run that has trained"),
    (lambda f: (f / "checkpoint.pt").write_bytes(b""), "checkpoint.pt cannot be read: it is empty"),
    (lambda f: (f / "checkpoint.pt").write_bytes((f / "checkpoint.pt").read_bytes()[:9000]), "cannot be read"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json holds a list"),
    (lambda f: (f / "config.json").write_text("{}"), "config.json has no config; expected that of a run"),
    (lambda f: (f / "metrics.json").write_text('{"final_weights": "0123456789abcdef"}'), "expected 0123456789abcdef"),
    (change(net={"head.branches.0.weight": torch.zeros(11, 64, 3, 3)}), "does not hold the network that it describes"),
    (change(config=CONFIG | dict(layers=3)), "does not hold the network that it describes"),
    (change(config=CONFIG | dict(network="os:system")), "which is code outside of semeda; expected plugins="),
    (not_finite, "has NaN or infinite weights"),
])
def test_runs_that_cannot_be_opened(tmp_path, run, damage, words):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(InputError, match=words) as e:
        load_network(tmp_path / "run")
    assert "\n" not in str(e.value) and str(tmp_path / "run") in str(e.value)


def test_a_network_of_ones_own_needs_its_module_named(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\ndef make(num_classes): return nn.Conv2d(3, num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = build_network("own_net:make", 11)
    folder = write_run(tmp_path / "run", CONFIG | dict(network="own_net:make"), net)
    with pytest.raises(InputError, match="plugins=\\['own_net'\\], or --plugin own_net, if that is yours"):
        load_network(folder)
    opened = load_network(folder, plugins=["own_net"])
    assert torch.equal(opened.net.net.weight, net.net.weight)
    with pytest.raises(InputError, match="plugin 'nowhere' cannot be imported: ModuleNotFoundError"):
        load_network(folder, plugins=["nowhere"])
    sys.modules.pop("own_net", None)


def test_weights_alone_load_in_plain_torch(tmp_path):
    import torchvision
    from safetensors.torch import load_file
    name = "lraspp_mobilenet_v3_large"
    net = build_network(f"torchvision.{name}", 5).eval()
    network = TrainedNetwork(net, list("abcde"), [(i, i, i) for i in range(5)], f"torchvision.{name}", {}, (64, 32), 48)
    save_network(network, tmp_path / "net.safetensors")
    plain = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()
    plain.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(plain(x)["out"], net(x))
    again = load_network(tmp_path / "net.safetensors")
    assert (again.class_names, again.palette, again.image_size, again.crop) == (
        network.class_names, network.palette, (64, 32), 48)
    assert weights_hash(again.net) == weights_hash(net)


def test_networks_of_ones_own_are_written_and_read(tmp_path, monkeypatch, request):
    request.addfinalizer(lambda: NETWORKS.pop("mine"))
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\nfrom semeda.deeplab import DeepLabV2\n"
        "from semeda.networks import NETWORKS, NetworkRecord\n\n\n"
        "class Mine(DeepLabV2):\n    pass\n\n\n"
        "class Tied(nn.Module):\n    def __init__(self, num_classes):\n        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)\n        self.b.weight = self.a.weight\n"
        "        self.backbone = nn.Sequential(self.a)\n"
        "        self.out = nn.Conv2d(3, num_classes, 1)\n\n"
        "    def forward(self, x): return self.out(self.b(self.a(x)))\n\n\n"
        "NETWORKS.register('mine', NetworkRecord('mine', Mine, 'Mine', ('torchvision', 'caffe'), edge_head=True))\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_own("mynet", "plugin")
    for name, settings in (("mine", dict(backbone="resnet18", layers=2)), ("mynet:Tied", {})):
        net = build_network(name, 3, **settings).eval()
        save_network(TrainedNetwork(net, list("abc"), [(0, 0, 0)] * 3, name, settings), tmp_path / "m.safetensors")
        assert weights_hash(load_network(tmp_path / "m.safetensors", plugins=["mynet"]).net) == weights_hash(net)
    groups = parameter_groups(net, .1, .2) # its backbone is also elsewhere in it
    assert len({id(p) for group in groups for p in group["params"]}) == sum(len(group["params"]) for group in groups)


@pytest.mark.parametrize("header", [{}, {"format": "1"}, {"classes": "[", "image_size": "null"}])
def test_safetensors_of_others(tmp_path, header):
    from safetensors.torch import save_file
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", header)
    with pytest.raises(InputError, match="expected those of a file that semeda-predict --export safetensors wrote"):
        load_network(tmp_path / "w.safetensors")


def test_photos_in_all_their_forms(network):
    picture = scene(1)
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    masks = [predict_image(network.net, image, size=(48, 36)) for image in (picture, array, tensor)]
    assert all(torch.equal(mask, masks[0]) for mask in masks) and masks[0].shape == (44, 60)
    assert torch.equal(as_photo(array[..., 0]), tensor[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    "image, words",
    [
        (np.zeros((4, 5, 3), np.uint16), "image is uint16; expected uint8"),
        (torch.zeros(3, 4, 5), "image is float32; expected uint8"),
        (
            torch.zeros(1, 3, 4, 5, dtype=torch.uint8),
            r"image is a Tensor of shape \(1, 3, 4, 5\); expected a tensor of shape",
        ),
        (np.zeros((4, 5, 4), np.uint8), r"image is a ndarray of shape \(4, 5, 4\); expected an array of shape"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), "expected a tensor of shape"),
        (7, "image is a int; expected a tensor"),
    ],
)
def test_photos_that_are_refused(network, image, words):
    with pytest.raises(InputError, match=words):
        predict_image(network.net, image)


def test_batches_of_several_sizes(network):
    photos = [as_photo(scene(i, *size)) for i, size in enumerate([(60, 44), (44, 60), (60, 44), (33, 33)])]
    network.net.train()
    masks = predict_images(network.net, photos)
    assert network.net.training
    network.net.eval()
    for photo, mask in zip(photos, masks):
        assert mask.shape == photo.shape[1:] and torch.equal(mask, predict_image(network.net, photo))


class Net(torch.nn.Module):
    "A network whose output is made by a function of the images"
    def __init__(self, make, dtype=torch.float32):
        super().__init__()
        self.make, self.weight = make, torch.nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x):
        return self.make(x * self.weight)


def classes(x, count=3):
    "Logits of which class 2 is the largest"
    return torch.stack([x.mean(dim=1) * 0 + (k == 2) for k in range(count)], dim=1)


@pytest.mark.parametrize("make, words", [
    (lambda x: x[:, :1], "network Net gave 1 channel; expected the logits of 2..255 classes"),
    (lambda x: classes(x, 300), "network Net gave 300 channels; expected the logits of 2..255 classes"),
    (lambda x: classes(x)[:1], "network Net gave logits of 1 images for 2; expected those of each"),
    (lambda x: classes(x).argmax(dim=1), "network Net returns Tensor; expected logits of shape"),
    (lambda x: (classes(x), 1), "network Net returns tuple; expected logits of shape"),
    (lambda x: classes(x) / 0, "network Net gave logits that are NaN; expected numbers"),
])
def test_outputs_that_make_no_mask_are_refused(make, words):
    with pytest.raises(InputError) as e:
        predict_images(Net(make), [as_photo(scene(0))] * 2)
    assert words in str(e.value)


@pytest.mark.parametrize("make, dtype", [
    (lambda x: dict(out=classes(x)), torch.float32),
    (lambda x: classes(x)[..., ::4, ::4], torch.float16),
    (lambda x: classes(x).long(), torch.float32),
])
def test_outputs_of_other_forms_make_masks(make, dtype):
    net = Net(make, dtype)
    [mask] = predict_images(net, [as_photo(scene(0))])
    assert mask.shape == (44, 60) and (mask == 2).all()
    assert torch.equal(predict_image(net, scene(0), tile=32), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_classes_that_are_ruled_out_stay_so_where_logits_are_enlarged(dtype):
    "Between two logits of -inf there was NaN, which is the largest of all"
    def ruled_out(x):
        return classes(x)[..., ::4, ::4].masked_fill((torch.arange(3) == 1).view(1, 3, 1, 1), -torch.inf)
    [mask] = predict_images(Net(ruled_out, dtype), [as_photo(scene(0))])
    assert (mask == 2).all()


@pytest.mark.parametrize("settings, words", [
    (dict(size="24x20"), "size is '24x20'; expected width and height, such as (240, 180)"),
    (dict(size=(24,)), "size is (24,); expected width and height"),
    (dict(size=(0, 20)), "size is 0; expected 1.."),
    (dict(tile=32, batch_size=0), "batch_size is 0; expected 1.."),
])
def test_settings_of_prediction_that_are_refused(settings, words):
    call = predict_tiles if "tile" in settings else lambda net, photo, **given: predict_images(net, [photo], **given)
    with pytest.raises(InputError) as e:
        call(Net(classes), as_photo(scene(0)), **settings)
    assert words in str(e.value)


@pytest.mark.parametrize("state, words", [
    ({}, "is of step 3 of 20: its run has not finished"),
    (dict(diverged=True), "is of step 3 of 20: its run has diverged"),
])
def test_a_run_that_has_not_finished_is_told(tmp_path, photos, capsys, state, words):
    folder = write_run(tmp_path / "run", CONFIG | dict(iterations=20))
    (folder / "metrics.json").unlink()
    if state:
        (folder / "diverged.json").write_text("{}")
    assert main([str(folder), str(photos), str(tmp_path / "out"), "--quiet"]) in (0, 1)
    assert f"semeda-predict: {folder / 'checkpoint.pt'} {words}" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "net.safetensors"), "--export=safetensors"]) == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_keeps_its_mode(fails):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)).train()
    net[1].eval() # a batch-norm that the user froze
    if fails:
        torch.nn.init.constant_(net[2].weight, torch.nan)
        with pytest.raises(InputError, match="network Sequential gave logits that are NaN; expected numbers"):
            predict_image(net, scene(0, 8, 8))
    else:
        predict_image(net, scene(0, 8, 8))
    assert net.training and not net[1].training and net[2].training


@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_the_photo(seed):
    rng = np.random.default_rng(seed)
    height, width, tile = (int(n) for n in (rng.integers(1, 150), rng.integers(1, 150), rng.integers(4, 70)))
    net = torch.nn.Conv2d(3, 7, 1)
    photo = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    assert torch.equal(predict_tiles(net, photo, tile), predict_images(net, [photo])[0])
    assert tile_starts(height, tile) == sorted(set(tile_starts(height, tile)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Photos of every kind, and files that are none"
    folder = tmp_path_factory.mktemp("photos")
    (folder / "trip" / "day 1").mkdir(parents=True)
    scene(1).save(folder / "a.png")
    scene(2, 50, 70).save(folder / "trip" / "b.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(3).save(folder / "trip" / "day 1" / "c.JPG", exif=exif)
    scene(4).convert("L").save(folder / "grey.png")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "sixteen.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no photo")
    (folder / "notes.txt").write_text("not looked at")
    huge_png(folder / "huge.png")
    return folder


def test_a_folder_of_photos(run, network, photos, tmp_path, capsys):
    before = snapshot(photos)
    assert main([str(run), str(photos), str(tmp_path / "out"), "--overlay", "--batch-size", "3"]) == 1
    shown = capsys.readouterr()
    assert "11 classes, resized to 48x36 as in training, masks at the photo's own size" in shown.out
    assert shown.out.splitlines()[-1] == f"{tmp_path / 'out'}: 4 masks, 4 photos without one"
    told = sorted(line for line in lines_of(shown.err) if line.startswith("semeda-predict: "))
    assert [line.split()[1].rpartition("/")[2] for line in told] == ["empty.png", "huge.png", "sixteen.png", "text.jpg"]
    assert "is a I;16 image; expected 8 bits a channel" in told[2] and "decompression bomb" in told[1]
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    masks = ["a.png", "grey.png", "trip/b.png", "trip/day 1/c.png"]
    assert written == sorted(masks + [m.replace(".png", "_overlay.jpg") for m in masks])
    upright = {"a.png": "a.png", "trip/b.png": "trip/b.jpg", "trip/day 1/c.png": "trip/day 1/c.JPG"}
    for mask, photo in upright.items():
        with Image.open(tmp_path / "out" / mask) as file, Image.open(photos / photo) as picture:
            picture = ImageOps.exif_transpose(picture)
            assert file.mode == "P" and file.size == picture.size
            assert file.getpalette()[:33] == [v for colour in CAMVID_PALETTE for v in colour]
            expected = predict_image(network.net, picture, size=(48, 36))
            assert np.array_equal(np.array(file), expected.numpy())
    assert snapshot(photos) == before


def test_one_photo(run, network, photos, tmp_path, capsys):
    assert main([str(run), str(photos / "a.png"), str(tmp_path / "mask.png"), "--tile", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "at full size in tiles of 40x40; the network was trained on images of 48x36" in shown
    assert shown.endswith("mask.png: 1 mask\n")
    expected = predict_image(network.net, photos / "a.png", tile=40)
    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")), expected.numpy())
    assert main([str(run), str(photos / "empty.png"), str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists() or not any((tmp_path / "none").iterdir())


def test_a_photo_is_not_taken_for_the_mask_of_another(run, photos, tmp_path, capsys):
    "semeda-predict RUN *.png, where there are two"
    for name in ("one.png", "two.png"):
        Image.open(photos / "a.png").save(tmp_path / name)
    before = snapshot(tmp_path)
    assert main([str(run), str(tmp_path / "one.png"), str(tmp_path / "two.png")]) == 2
    assert "two.png is there and no mask of semeda-predict; expected another folder or" in capsys.readouterr().err
    Image.open(photos / "a.png").quantize(4).save(tmp_path / "two.png") # a label, as it may be
    (tmp_path / "labels").mkdir()
    shutil.copy(tmp_path / "two.png", tmp_path / "labels" / "one.png")
    before = snapshot(tmp_path)
    assert main([str(run), str(tmp_path / "one.png"), str(tmp_path / "two.png")]) == 2
    assert main([str(run), str(tmp_path / "one.png"), str(tmp_path / "labels")]) == 2
    assert "one.png is there and no mask of semeda-predict" in capsys.readouterr().err
    assert main([str(run), str(tmp_path / "one.png"), str(tmp_path / "three.jpg")]) == 2
    assert "three.jpg ends in .jpg; expected a folder, or a .png for a single photo" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    for _ in range(2): # a mask of an earlier call is written anew
        assert main([str(run), str(tmp_path / "one.png"), str(tmp_path / "mask.png")]) == 0


def test_files_that_are_no_photos_are_counted(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    scene(1).save(tmp_path / "mine" / "one.png")
    assert main([str(run), str(tmp_path / "mine"), str(tmp_path / "out")]) == 0
    assert "left aside" not in capsys.readouterr().out
    for name in ("two.heic", "three.cr2", ".hidden"):
        (tmp_path / "mine" / name).touch()
    assert main([str(run), str(tmp_path / "mine"), str(tmp_path / "out")]) == 0
    assert "mine: 2 other files left aside, such as three.cr2\n" in capsys.readouterr().out


def test_masks_without_small_pieces(run, network, photos, tmp_path, capsys):
    whole = predict_image(network.net, photos / "a.png")
    for size in ([], ["--tile"]):
        out = tmp_path / f"mask{len(size)}.png"
        assert main([str(run), str(photos / "a.png"), str(out), "--min-area", "40", *size]) == 0
        found = np.array(Image.open(out))
        shown = dict(tile=40) if size else dict(size=(48, 36))
        expected = predict_image(network.net, photos / "a.png", min_area=40, **shown)
        plain = predict_image(network.net, photos / "a.png", **shown)
        assert np.array_equal(found, expected.numpy()) and np.array_equal(found, sieve(plain, 40).numpy())
    assert not torch.equal(sieve(whole, 40), whole) # this network of random weights leaves small pieces


def test_photos_that_do_not_fit_into_memory(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "photos").mkdir()
    for i, width in enumerate((60, 60, 80)):
        scene(i, width).save(tmp_path / "photos" / f"{i}.png")
    whole, sizes = predict.predict_images, []

    def of_little_memory(net, photos, style, size):
        sizes.append(len(photos))
        if len(photos) > 1 or photos[0].shape[2] == 80:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return whole(net, photos, style, size)
    monkeypatch.setattr(predict, "predict_images", of_little_memory)
    assert main([str(run), str(tmp_path / "photos"), str(tmp_path / "out")]) == 1
    assert "2.png has no mask: image of 80x44 does not fit into memory; expected --tile" in capsys.readouterr().err
    assert sizes == [3, 1, 1, 1] and len(list((tmp_path / "out").iterdir())) == 2


BAD = [
    (["RUN", "PHOTOS"], "OUT is not given; expected RUN PHOTOS OUT"),
    (["nowhere", "PHOTOS", "OUT"], "run nowhere does not exist"),
    (["RUN", "nowhere", "OUT"], "photos nowhere does not exist"),
    (["RUN", "EMPTY", "OUT"], "has none; expected files ending in .png, .jpg"),
    (["RUN", "PHOTOS", "PHOTOS"], "lies among the photos; expected another folder"),
    (["RUN", "PHOTOS", "PHOTOS/masks"], "lies among the photos; expected another folder"),
    (["RUN", "PHOTOS/a.png", "PHOTOS/a.png"], "is the photo itself; expected another file"),
    (["RUN", "PHOTOS", "PHOTOS/a.png"], "is a file; expected a folder or nothing"),
    (["RUN", "PHOTOS", "/proc/none/out"], "cannot be written to"),
    (["RUN", "PHOTOS", "a\0b"], "out is 'a\\x00b'; expected a path without a null character"),
    (["RUN", "a\0b", "--export", "pt2"], "holds a null character; expected a writable place"),
    (["RUN", "OUT", "--export", "onnx", "--device", "cpu"], "--device given with --export"),
    (["RUN", "PHOTOS", "OUT", "--device", "meta"], "device is 'meta'; expected one that torch finds here"),
    (["RUN", "PHOTOS", "OUT", "--tile", "8"], "--tile is 8; expected at least 32"),
    (["RUN", "PHOTOS", "OUT", "--batch-size", "0"], "--batch-size is 0; expected at least 1"),
    (["RUN", "PHOTOS", "OUT", "--device", "tpu"], "device is 'tpu'; expected one that torch finds here"),
    (["RUN", "PHOTOS", "OUT", "--export", "onnx"], "OUT given with --export; expected RUN FILE --export onnx alone"),
    (["RUN", "OUT", "--export", "onnx", "--tile"], "--tile given with --export"),
    (["RUN", "OUT", "--export", "onnx", "--min-area", "9"], "--min-area given with --export"),
    (["RUN", "PHOTOS", "OUT", "--min-area", "-1"], "--min-area is -1; expected a number of pixels, 0 or more"),
    (["RUN", "EMPTY", "--export", "pt2"], "is a folder; expected the file to write"),
]


@pytest.mark.parametrize("args, words", BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_arguments(run, photos, tmp_path, capsys, args, words):
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path), snapshot(photos)
    places = dict(RUN=str(run), PHOTOS=str(photos), OUT=str(tmp_path / "out"), EMPTY=str(tmp_path / "empty"))
    given = ["/".join(places.get(part, part) for part in arg.split("/")) for arg in args]
    assert main(given) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("semeda-predict: ") and words in line
    assert (snapshot(tmp_path), snapshot(photos)) == before


@pytest.mark.parametrize("multiple", [1, 32])
def test_export_of_pt2(tmp_path, multiple):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.Conv2d(8, 4, 1))
    net = ExternalNetwork(plain, "small", 4, multiple=multiple, style="caffe").eval()
    network = TrainedNetwork(net, list("abcd"), [(0, 0, 0)] * 4, "mine:small", dict(style="caffe"))
    assert export.export_network(network, tmp_path / "net.pt2", "pt2") == dict(difference=0, agree=1)
    photo = as_photo(scene(5, 96, 64))
    about = {"semeda.json": ""}
    alone = torch.export.load(tmp_path / "net.pt2", extra_files=about).module()
    found = alone(photo[None].float()).argmax(dim=1)[0]
    assert (found == predict_image(net, photo, "caffe")).float().mean() > .999
    assert json.loads(about["semeda.json"])["channels"] == "BGR"


@pytest.mark.parametrize("kind", ["torchscript", "onnx", "safetensors"])
def test_export(run, network, tmp_path, capsys, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs pip install 'semeda[export]'")
        pytest.importorskip("onnx", reason="needs pip install 'semeda[export]'")
    path = tmp_path / f"net.{kind}"
    assert main([str(run), str(path), "--export", kind]) == 0
    assert "the same class at 100.00% of the pixels" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    photo = as_photo(scene(5))
    expected = predict_image(network.net, photo)
    if kind == "safetensors":
        assert torch.equal(predict_image(load_network(path).net, photo), expected)
        return
    found = export._RUN[kind](path)(photo[None].float()).argmax(dim=1)[0]
    assert (found == expected).float().mean() > .999


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    def half(net, example, about, path, multiple):
        net.std.mul_(2)
        torch.jit.trace(net, example).save(str(path))
        net.std.div_(2)
    monkeypatch.setitem(export._WRITE, "torchscript", half)
    network = TrainedNetwork(torch.nn.Conv2d(3, 2, 1), ["a", "b"], [(0, 0, 0)] * 2)
    (tmp_path / "net.pt").write_text("old")
    with pytest.raises(InputError, match="export torchscript of .* differs from the network by .* expected less than"):
        export.export_network(network, tmp_path / "net.pt", "torchscript")
    assert (tmp_path / "net.pt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["torchscript", "pt2", "safetensors"])
def test_export_to_a_full_disk(tmp_path, file_limit, kind):
    "torch's own writing of a file would end the process there"
    network = TrainedNetwork(torch.nn.Conv2d(3, 2, 1), ["a", "b"], [(0, 0, 0)] * 2)
    file_limit(100)
    with pytest.raises(InputError, match="net.x cannot be written"):
        export.export_network(network, tmp_path / "net.x", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("full", ["at the start", "while it writes"])
@pytest.mark.parametrize("bar", [[], ["--quiet"]])
def test_masks_on_a_full_disk(run, photos, tmp_path, capsys, monkeypatch, file_limit, full, bar):
    if full == "at the start":
        file_limit(100)
    else:
        monkeypatch.setattr(predict, "probe_folder", lambda *_: file_limit(100))
    assert main([str(run), str(photos / "a.png"), str(tmp_path / "out"), "--overlay", *bar]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("semeda-predict: ") and "cannot be written" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_help_says_it_once(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--help"])
    shown = capsys.readouterr().out
    assert e.value.code == 0 and shown.count("--tile [N]") == 1 and "semeda-predict RUN FILE --export FORMAT" in shown


def test_a_trained_network_segments_a_photograph_as_it_was_trained(run, photos):
    "With its own style and size"
    network = load_network(run)
    network.settings["style"], network.image_size = "caffe", (40, 32)
    expected = predict_image(network.net, photos / "a.png", "caffe", (40, 32))
    assert torch.equal(predict_image(network, photos / "a.png"), expected)


@pytest.mark.parametrize("upsampling", ["aligned", "stretched"])
def test_a_network_is_read_with_the_upsampling_that_it_was_written_with(tmp_path, upsampling):
    "Also where its settings say nothing of it; a file of an earlier version was stretched"
    settings = dict(backbone="resnet18", layers=2, output_stride=8)
    net = build_network("deeplab_v2", 3, upsampling=upsampling, **settings).eval()
    network = TrainedNetwork(net, ["a", "b", "c"], [(0, 0, 0)] * 3, settings=settings)
    save_network(network, tmp_path / "net.safetensors")
    x = torch.randn(1, 3, 36, 44)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "net.safetensors").net(x), net(x))


def test_an_overlay_is_not_written_over_another_picture(run, photos, tmp_path, capsys):
    shutil.copy(photos / "a.png", tmp_path / "a.png")
    asked = [str(run), str(tmp_path / "a.png"), str(tmp_path / "mask.png"), "--overlay"]
    for _ in range(2): # its own is written anew
        assert main(asked) == 0
    scene(1).save(tmp_path / "mask_overlay.jpg")
    before = snapshot(tmp_path)
    assert main(asked) == 2 and snapshot(tmp_path) == before
    assert "mask_overlay.jpg is there and no overlay of semeda-predict; expected another" in capsys.readouterr().err
    assert main(asked[:-1]) == 0


@pytest.mark.parametrize("kind", ["torchscript", "safetensors"])
def test_an_export_is_not_written_over_other_files(tmp_path, capsys, kind):
    run = write_run(tmp_path / "run")
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    before = snapshot(tmp_path)
    for path in (run / "checkpoint.pt", tmp_path / "photo.jpg"):
        assert main([str(run), str(path), "--export", kind]) == 2
        assert f"{path} is there and no network that --export wrote; expected another file" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    for _ in range(2): # an export is written anew
        assert main([str(run), str(tmp_path / "network.safetensors"), "--export", kind]) == 0


def test_a_damaged_checkpoint_is_no_network(tmp_path):
    from semeda.checkpoints import checkpoint_hash, init_weights
    run = write_run(tmp_path / "run", config=CONFIG)
    state = torch.load(run / "checkpoint.pt") | dict(config=CONFIG)
    state["hash"] = checkpoint_hash(state)
    torch.save(state, run / "best.pt")
    assert load_network(run / "best.pt").num_classes == 11
    state["net"]["head.branches.0.bias"][0] += 1
    torch.save(state, run / "best.pt")
    for read in (load_network, lambda path: init_weights(build_network("deeplab_v2", 11, **SETTINGS), path)):
        with pytest.raises(InputError, match="best.pt is damaged; expected the content that its hash .* is of"):
            read(run / "best.pt")


@pytest.mark.parametrize("tile", [-8, 0.5, "x"])
def test_tiles_that_are_none(network, photos, tile):
    with pytest.raises(InputError, match="tile is"):
        predict_image(network.net, photos / "a.png", tile=tile)


def test_a_picture_with_a_comment_of_its_own_is_not_written_over(run, photos, tmp_path, capsys):
    from PIL.PngImagePlugin import PngInfo
    about = PngInfo()
    about.add_text("comment", "mine")
    scene(1).save(tmp_path / "mask.png", pnginfo=about)
    assert main([str(run), str(photos / "a.png"), str(tmp_path / "mask.png")]) == 2
    assert "mask.png is there and no mask of semeda-predict" in capsys.readouterr().err
