import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from semeda.core import InputError
from semeda.reading import (
    check_palettes,
    files_by_name,
    label_files,
    match_files,
    read_image,
    read_label,
    read_label_map,
    read_numbers,
    stored_size,
)
from semeda.segment import as_photo


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(size, depth, colour, rows):
    "A PNG file of any bit depth, and of any size that its header says"
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_png_of_few_bits(tmp_path, depth):
    "Class numbers are those that the file stores, not stretched to 0..255"
    numbers = np.arange(16).reshape(2, 8) % 2**depth
    bits = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=2)[..., 8 - depth:].reshape(2, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    (tmp_path / "a.png").write_bytes(png_bytes((8, 2), depth, 0, rows))
    assert (read_label(tmp_path / "a.png", 16).numpy() == numbers).all()
    assert (read_label(tmp_path / "a.png", 16, size=(4, 1)).numpy() == numbers[1:, 1::2]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(1, 255), st.integers(0, 2**16 - 1))
def test_numbers_of_16_bits_never_wrap(tmp_path_factory, value, num_classes, void):
    path = tmp_path_factory.getbasetemp() / "wide.png"
    Image.fromarray(np.full((2, 2), value, np.uint16)).save(path)
    if value == void or value < num_classes:
        assert read_label(path, num_classes, void).unique().tolist() == [255 if value == void else value]
    else:
        with pytest.raises(InputError, match=f"contain {value}; expected 0..{num_classes - 1} or {void} "):
            read_label(path, num_classes, void)


def test_a_label_equal_to_the_number_of_classes_is_refused(tmp_path):
    Image.fromarray(np.array([[0, 3]], np.uint8)).save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png", 4).tolist() == [[0, 3]]
    with pytest.raises(InputError, match="contain 3; expected 0..2 or 255"):
        read_label(tmp_path / "a.png", 3)
    np.save(tmp_path / "a.npy", np.array([[0, -1]]))
    with pytest.raises(InputError, match="contain -1; expected 0..2 or 255"):
        read_label(tmp_path / "a.npy", 3)
    assert read_label(tmp_path / "a.npy", 3, void=-1).tolist() == [[0, 255]]


def frames(path):
    Image.new("L", (3, 2)).save(path, save_all=True, append_images=[Image.new("L", (3, 2), 1)])


def bomb(path):
    path.write_bytes(png_bytes((100_000, 100_000), 8, 0, b"\0" * 100))


def postscript(path):
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n")


def array(values):
    def write(path):
        with open(path, "wb") as file:
            np.save(file, values)
    return write


def picture(mode, fill=0):
    return lambda path: Image.new(mode, (3, 2), fill).save(path)


def huge_array(path):
    "A header that says 10^12 bytes"
    array(np.zeros((2, 3), np.uint8))(path)
    path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(1000000, 1000000)").replace(b" " * 12, b"", 1))


# file, how it is spoilt, the message for an image and for a label; None where it is read
BAD = dict(
    empty=("a.png", lambda p: p.write_bytes(b""), "cannot be decoded", "cannot be decoded"),
    text=("a.png", lambda p: p.write_text("hello"), "cannot be decoded", "cannot be decoded"),
    folder=("a.png", lambda p: p.mkdir(), "cannot be decoded", "cannot be decoded"),
    missing=("a.png", lambda p: None, "cannot be decoded: [Errno 2]", "cannot be decoded: [Errno 2]"),
    null=("a\0.png", lambda p: None, "cannot be decoded: embedded null byte", "embedded null byte"),
    long=("a" * 300 + ".png", lambda p: None, "File name too long", "File name too long"),
    bomb=("a.png", bomb, "could be decompression bomb", "could be decompression bomb"),
    script=("a.png", postscript, "cannot identify", "cannot identify"),
    frames=("a.tif", frames, "has 2 frames; expected one", "has 2 frames; expected one"),
    gif=("a.gif", frames, "has 2 frames; expected one", "has 2 frames; expected one"),
    deep=("a.png", picture("I;16", 300), "is a I;16 image; expected 8 bits a channel", "contain 300"),
    integers=("a.tif", picture("I", 70000), "is a I image; expected 8 bits a channel", "contain 70000"),
    floats=("a.tif", picture("F", .5), "is a F image; expected 8 bits a channel", "is a F image; expected one channel"),
    colours=("a.png", picture("RGB"), None, "is a RGB image; expected one channel"),
    alpha=("a.png", picture("LA"), None, "is a LA image; expected one channel"),
    jpeg=("a.png", lambda p: Image.new("L", (3, 2)).save(p, "JPEG"), None, "cannot identify image file"),
    real_array=("a.npy", array(np.zeros((2, 3))), "cannot identify", "holds float64 of shape 2x3; expected integers"),
    deep_array=("a.npy", array(np.zeros((2, 3, 4), int)), "cannot identify", "of shape 2x3x4; expected integers"),
    pickled=("a.npy", array(np.array([[{}]], object)), "cannot identify", "cannot be decoded"),
    huge_array=("a.npy", huge_array, "cannot identify", "cannot be decoded"),
)


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    name, spoil, image, label = BAD[case]
    path = tmp_path / name
    if "\0" not in name:
        spoil(path)
    for read, words in ((read_image, image), (lambda p: read_label(p, 3), label)):
        if words is None:
            assert read(path).shape[-2:] == (2, 3)
        else:
            with pytest.raises(InputError) as e:
                read(path)
            assert words in str(e.value) and name[:9] in str(e.value) and "\n" not in str(e.value)


def test_every_truncation_is_told_or_read_whole(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (9, 7), dtype=np.uint8)).save(path)
    whole, content = read_label(path, 3), path.read_bytes()
    for end in range(0, len(content), 3):
        path.write_bytes(content[:end])
        try:
            assert torch.equal(read_label(path, 3), whole)
        except InputError as e:
            assert "a.png cannot be decoded" in str(e)


@pytest.mark.parametrize("num_classes", [0, 256, 280])
def test_too_many_classes(tmp_path, num_classes):
    with pytest.raises(InputError, match=f"num_classes is {num_classes}; expected 1..255"):
        read_label(tmp_path / "a.png", num_classes)


def test_colours_and_equal_channels(tmp_path):
    palette = [(0, 0, 0), (128, 0, 0), (224, 224, 192)]
    numbers = np.array([[0, 1, 2], [1, 1, 2]])
    Image.fromarray(np.array(palette, np.uint8)[numbers]).save(tmp_path / "a.png")
    assert (read_label(tmp_path / "a.png", 2, colours=palette).numpy() == np.where(numbers == 2, 255, numbers)).all()
    with pytest.raises(InputError, match="a.png has the colours 224 224 192; expected those of the palette"):
        read_label(tmp_path / "a.png", 2, colours=palette[:2])
    with pytest.raises(InputError, match="a.png is an RGB image with colours; expected three equal channels"):
        read_label(tmp_path / "a.png", 2, equal_channels=True)
    Image.fromarray(numbers.astype(np.uint8)).convert("RGB").save(tmp_path / "a.png")
    assert (read_label(tmp_path / "a.png", 3, equal_channels=True).numpy() == numbers).all()


def test_other_ways_to_store_numbers(tmp_path):
    numbers = np.array([[0, 1, 2], [2, 1, 255]])
    Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / "a.tif")
    Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "b.png")
    palette = Image.fromarray(numbers.astype(np.uint8))
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "c.png")
    np.save(tmp_path / "d.npy", numbers[None])
    for name in ("a.tif", "b.png", "c.png", "d.npy"):
        assert (read_label(tmp_path / name, 3).numpy() == numbers).all(), name
        assert stored_size(tmp_path / name) == (3, 2)
        assert read_label(tmp_path / name, 3, size=(6, 2)).tolist() == np.repeat(numbers, 2, axis=1).tolist(), name


@pytest.mark.parametrize("text, words", [
    ("", "is empty; expected a number and its class a line"),
    ("1\n", "has the line '1'; expected a number and its class or void"),
    ("1 a\n", "has the line '1 a'; expected a number and its class or void"),
    ("1 3\n", "has the line '1 3'; expected a class 0..2 or void"),
    ("1 0\n1 2\n", "has 1 twice; expected one class for each number"),
    ("²: 1\n", "has the line '²: 1'; expected a number"),
])
def test_bad_label_maps(tmp_path, text, words):
    (tmp_path / "map.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as e:
        read_label_map(tmp_path / "map.txt", 3)
    assert words in str(e.value)


def test_cityscapes_map_knows_every_label_id_and_no_other():
    known = read_label_map("cityscapes", 19)
    assert sorted(known) == list(range(-1, 34)) and sorted(set(known.values()) - {255}) == list(range(19))


def test_label_map_that_does_not_fit(tmp_path):
    with pytest.raises(InputError, match="label map cityscapes has 19 classes; expected 3"):
        read_label_map("cityscapes", 3)
    with pytest.raises(InputError, match="label map nope cannot be read: .*; expected a text file or one of"):
        read_label_map("nope", 3)
    (tmp_path / "map.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_label_map(tmp_path / "map.txt", 3)
    Image.new("L", (3, 2), 40).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png contain 40; expected the numbers of the label map"):
        read_label(tmp_path / "a.png", 19, label_map=read_label_map("cityscapes", 19))


@pytest.mark.parametrize("names", [("0.png", "0.PNG"), ("a.png", "a.jpg"), ("a.jpeg", "a.jpg")])
def test_two_files_of_one_name(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    first, second = sorted(names)
    with pytest.raises(InputError, match=f"has {first} and {second}; expected one file of each name"):
        files_by_name(tmp_path)


def test_match_files_in_sub_folders(tmp_path):
    "As Cityscapes stores them"
    for city in ("aachen", "ulm"):
        for name in ("images/x_leftImg8bit.png", "labels/x_gtFine_labelIds.png", "labels/x_gtFine_color.png"):
            path = tmp_path / name.replace("/", f"/{city}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    pairs = match_files(tmp_path / "images", tmp_path / "labels", "_leftImg8bit", "_gtFine_labelIds", recursive=True)
    names = [(image.relative_to(tmp_path).as_posix(), label.name) for image, label in pairs]
    assert names == [(f"images/{city}/x_leftImg8bit.png", "x_gtFine_labelIds.png") for city in ("aachen", "ulm")]
    assert len(label_files(tmp_path / "labels")) == 4
    (tmp_path / "labels" / "ulm" / "x_gtFine_labelIds.png").unlink()
    with pytest.raises(InputError, match="ulm/x_leftImg8bit.png has no label; expected .*/ulm/x_gtFine_labelIds"):
        match_files(tmp_path / "images", tmp_path / "labels", "_leftImg8bit", "_gtFine_labelIds", recursive=True)


def test_a_palette_in_another_order_is_read_by_its_colours(tmp_path):
    colours = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (255, 255, 255)] # the last is void
    numbers = np.random.default_rng(0).integers(0, 4, (8, 9))
    truth = np.where(numbers == 3, 255, numbers)
    pictured = Image.fromarray(np.array(colours, np.uint8)[numbers])
    pictured.quantize(4).save(tmp_path / "order.png") # as a program that saves space may
    pictured.save(tmp_path / "rgb.png")
    own_order = Image.open(tmp_path / "order.png")
    assert own_order.mode == "P" and (np.array(own_order) != numbers).any()
    for name in ("order.png", "rgb.png"):
        assert (read_label(tmp_path / name, 3, colours=colours).numpy() == truth).all()
        half = read_label(tmp_path / name, 3, colours=colours, size=(18, 16)).numpy()
        assert (half[::2, ::2] == truth).all()

    def palette_file(name, *palette):
        picture = Image.fromarray(np.minimum(numbers, 2).astype(np.uint8))
        picture.putpalette([value for colour in palette for value in colour])
        picture.save(tmp_path / name)
        return tmp_path / name

    for others in ([(1, 1, 1), (2, 2, 2), (3, 3, 3)], [(10, 20, 30), (2, 2, 2), (0, 200, 0)]): # no contradiction
        found = read_label(palette_file("same.png", *others), 3, colours=colours)
        assert (found.numpy() == np.minimum(numbers, 2)).all()
    with pytest.raises(InputError, match="some.png has pixels of number 1 in the colour of number 2 of the palette"):
        read_label(palette_file("some.png", (1, 1, 1), (0, 200, 0), (3, 3, 3)), 3, colours=colours)


def test_grey_files_beside_a_palette_with_greys(tmp_path):
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "numbers.png")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "white.png")
    greys = [(0, 0, 0), (255, 255, 255)]
    assert read_label(tmp_path / "numbers.png", 2, colours=greys).tolist() == [[0, 1]]
    assert read_label(tmp_path / "white.png", 2).tolist() == [[0, 255]]
    with pytest.raises(InputError, match="white.png has pixels of number 255 in the colour of number 1"):
        read_label(tmp_path / "white.png", 2, colours=greys)


def test_large_numbers_stay_wrong_when_they_are_resized(tmp_path):
    np.save(tmp_path / "large.npy", np.array([[2**32 + 1, 0]]))
    for size in (None, (4, 2)):
        with pytest.raises(InputError, match="4294967297"):
            read_label(tmp_path / "large.npy", 3, size=size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright_in_training_as_in_prediction(tmp_path, orientation):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "photo.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "photo.png"))
    found = read_image(tmp_path / "photo.png")
    assert (found.permute(1, 2, 0).numpy() == np.array(expected)).all()
    assert stored_size(tmp_path / "photo.png") == expected.size
    assert torch.equal(as_photo(tmp_path / "photo.png"), found)
    assert torch.equal(as_photo(Image.open(tmp_path / "photo.png")), found)
    small = read_image(tmp_path / "photo.png", (4, 4)).permute(1, 2, 0).numpy()
    assert (small == np.array(expected.resize((4, 4), Image.Resampling.BILINEAR))).all()


def test_colours_of_16_bits_are_refused(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">6H", *range(6)) for _ in range(3))
    (tmp_path / "deep.png").write_bytes(png_bytes((2, 3), 16, 2, rows))
    with pytest.raises(InputError, match="deep.png is a RGB;16B image; expected 8 bits a channel"):
        read_image(tmp_path / "deep.png")
    for more in (dict(equal_channels=True), dict(colours={(0, 0, 0): 0})): # of each number the upper byte would be read
        with pytest.raises(InputError, match="mask .*deep.png is a RGB;16B image; expected 8 bits a channel"):
            read_numbers(tmp_path / "deep.png", what="mask", **more)
    for mode in ("F", "I", "I;16"):
        with pytest.raises(InputError, match=f"image is a {mode} image; expected 8 bits"):
            as_photo(Image.new(mode, (4, 4)))


def test_a_mask_without_its_photograph_is_refused(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name in ("a", "b"):
            Image.new("L", (4, 4)).save(tmp_path / kind / f"{name}.png")
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "b.txt")
    with pytest.raises(InputError, match="label .*b.png has no image; expected .*b with one of the endings .png, .jpg"):
        match_files(tmp_path / "images", tmp_path / "labels")


def test_hidden_files_are_no_photographs(tmp_path):
    "Such as those that macOS leaves on other disks, and those of Jupyter"
    for kind in ("images", "labels"):
        (tmp_path / kind / ".ipynb_checkpoints").mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / kind / "a.png")
        for name in ("._a.png", ".hidden.png", ".ipynb_checkpoints/b.png"):
            (tmp_path / kind / name).write_bytes(b"no image")
    for recursive in (False, True):
        pairs = match_files(tmp_path / "images", tmp_path / "labels", recursive=recursive)
        assert [image.name for image, _ in pairs] == ["a.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_mask_is_turned_as_its_photograph_is(tmp_path, orientation, mode):
    pixels = np.zeros((6, 9), np.uint8)
    pixels[:2, 5:] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(255 * pixels).convert("RGB").save(tmp_path / "photo.png", exif=exif)
    mask = Image.fromarray(pixels.astype(np.uint16) if mode == "I;16" else pixels)
    if mode == "P":
        mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "mask.png", exif=exif)
    for size in (None, (6, 9), (9, 6)):
        photo, label = read_image(tmp_path / "photo.png", size), read_label(tmp_path / "mask.png", 2, size=size)
        assert photo.shape[1:] == label.shape
        if size is None or size == tuple(label.shape[::-1]) == stored_size(tmp_path / "mask.png"):
            assert torch.equal(photo[0] // 255, label)
    assert stored_size(tmp_path / "mask.png") == stored_size(tmp_path / "photo.png")


def coloured(path, numbers, *colours):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(numbers, np.uint8), "P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)
    return path


BLACK, RED, GREEN, BLUE = (0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_palettes_of_one_set_of_masks(tmp_path, ending):
    def masks(*colours, numbers=((0, 1), (1, 0))):
        return [coloured(tmp_path / f"{i}.{ending}", numbers, *own) for i, own in enumerate(colours)]
    check_palettes(masks((BLACK, RED), (BLACK, RED)))
    check_palettes(masks((BLACK, RED, GREEN), (BLACK, RED, BLUE))) # a number that no pixel has
    check_palettes(masks((BLACK, RED), (BLACK, (1, 1, 1)))) # grey: the numbers themselves
    check_palettes([])
    with pytest.raises(InputError) as e:
        check_palettes(masks((BLACK, RED), (BLACK, (1, 1, 1)), (BLACK, GREEN)), "prediction")
    assert str(e.value) == (
        f"prediction {tmp_path}/2.{ending} shows number 1 in the colour 0 128 0, and {tmp_path}/0.{ending} in 128 0 0; "
        "expected one palette in all of them, or grey masks of class numbers")


def test_palettes_are_checked_wherever_masks_belong_together(tmp_path):
    from semeda.data import load_data
    from semeda.edge_net_files import main
    from semeda.evaluate import evaluate_folders
    for name, colours in dict(a=(BLACK, RED), b=(RED, BLACK)).items():
        coloured(tmp_path / "train" / "labels" / f"{name}.png", [[0, 1, 1], [1, 0, 1]], *colours)
        (tmp_path / "train" / "images").mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "train" / "images" / f"{name}.jpg")
    masks, out = tmp_path / "train" / "labels", tmp_path / "out"
    with pytest.raises(InputError, match="label .*b.png shows number 0 in the colour 128 0 0"):
        load_data("folder", "train", str(tmp_path), num_classes=2)
    with pytest.raises(InputError, match="prediction .*b.png shows number 0 in the colour 128 0 0"):
        evaluate_folders(masks, masks, 2, out)
    assert not out.exists()
    assert main([str(masks), str(tmp_path / "net.safetensors"), "--num-classes=2"]) == 2
    (tmp_path / "palette.txt").write_text("0 0 0\n128 0 0\n")
    assert evaluate_folders(masks, masks, 2, out, palette=tmp_path / "palette.txt")["miou"] == 1


def test_palettes_of_training_and_validation_are_one(tmp_path):
    from semeda.data import load_data
    for split, colour in dict(train=RED, val=BLUE).items():
        coloured(tmp_path / split / "labels" / "a.png", [[0, 1, 1], [1, 0, 1]], BLACK, colour)
        (tmp_path / split / "images").mkdir()
        Image.new("RGB", (3, 2)).save(tmp_path / split / "images" / "a.jpg")
    for split in ("train", "val"):
        with pytest.raises(InputError, match="label .*val/labels/a.png shows number 1 in the colour 0 0 128, and"):
            load_data("folder", split, str(tmp_path), num_classes=2)
    (tmp_path / "val" / "images" / "a.jpg").unlink() # what else is wrong with the other split does not matter here
    (tmp_path / "val" / "labels" / "a.png").unlink()
    assert len(load_data("folder", "train", str(tmp_path), num_classes=2)) == 1


def test_a_changed_label_of_the_same_size_changes_the_fingerprint(tmp_path):
    from semeda.splits import Files, files_fingerprint
    for name in ("photo.png", "mask.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    photos, masks = Files([tmp_path / "photo.png"], None), Files([tmp_path / "mask.png"], None)
    before, content = files_fingerprint(photos, masks), bytearray((tmp_path / "mask.png").read_bytes())
    content[-1] ^= 1
    (tmp_path / "mask.png").write_bytes(content)
    assert files_fingerprint(photos, masks) != before


def test_linked_folders_are_read(tmp_path):
    for kind in ("images", "labels"):
        coloured(tmp_path / "elsewhere" / kind / "b.png", [[0, 1]], BLACK, RED)
        coloured(tmp_path / kind / "a.png", [[0, 1]], BLACK, RED)
        (tmp_path / kind / "street").symlink_to(tmp_path / "elsewhere" / kind, target_is_directory=True)
        (tmp_path / kind / "round").symlink_to(tmp_path / kind, target_is_directory=True)
        (tmp_path / "elsewhere" / kind / "up").symlink_to(tmp_path / kind, target_is_directory=True)
    pairs = match_files(tmp_path / "images", tmp_path / "labels", recursive=True)
    assert [image.relative_to(tmp_path / "images").as_posix() for image, _ in pairs] == ["a.png", "street/b.png"]
    (tmp_path / "images" / "c.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="images/c.png is a link to nothing; expected a file, or no link"):
        match_files(tmp_path / "images", tmp_path / "labels", recursive=True)


def test_photographs_that_training_does_not_read_are_told(tmp_path):
    for kind in ("images", "labels"):
        coloured(tmp_path / kind / "a.png", [[0, 1]], BLACK, RED)
        coloured(tmp_path / kind / "b.gif", [[0, 1]], BLACK, RED)
    with pytest.raises(InputError, match="image .*b.gif is not read; expected one of the endings .png, .jpg"):
        match_files(tmp_path / "images", tmp_path / "labels")


def test_a_suffix_that_is_the_whole_name(tmp_path):
    coloured(tmp_path / "0" / "mask.png", [[0, 1]], BLACK, RED)
    assert list(files_by_name(tmp_path, suffix="mask", recursive=True)) == ["0/mask"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode, compression", [("L", None), ("L", "tiff_lzw"), ("RGB", None), ("RGB", "tiff_lzw")])
def test_a_turned_tiff_is_read_like_a_png(tmp_path, orientation, mode, compression):
    "Pillow gives some of a TIFF's size and pixels turned, and others not"
    stored = np.random.default_rng(0).integers(0, 3, (6, 8) + (3,) * (mode == "RGB"), dtype=np.uint8)
    picture = Image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    for name, more in (("a.png", {}), ("a.tif", dict(compression=compression))):
        picture.save(tmp_path / name, exif=picture.getexif(), **more)
    size = (8, 6) if orientation < 5 else (6, 8)
    assert [stored_size(tmp_path / name) for name in ("a.png", "a.tif")] == [size, size]
    assert torch.equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "a.png"))
    assert torch.equal(read_image(tmp_path / "a.tif", (5, 4)), read_image(tmp_path / "a.png", (5, 4)))
    if mode == "L":
        assert torch.equal(read_label(tmp_path / "a.tif", 3), read_label(tmp_path / "a.png", 3))


def test_a_bmp_of_16_bits_a_pixel_has_fewer_than_8_a_channel(tmp_path):
    header = b"BM" + (66 + 8).to_bytes(4, "little") + bytes(4) + (66).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + (2).to_bytes(4, "little") + (2).to_bytes(4, "little") + b"\1\0\x10\0"
    header += (3).to_bytes(4, "little") + (8).to_bytes(4, "little") + bytes(16) # bit fields
    header += b"".join(mask.to_bytes(4, "little") for mask in (0xF800, 0x07E0, 0x001F))
    pixels = np.array([[0xF800, 0x07E0], [0x001F, 0xFFFF]], "<u2")[::-1] # from the bottom row
    (tmp_path / "a.bmp").write_bytes(header + pixels.tobytes())
    red, green, blue, white = read_image(tmp_path / "a.bmp").flatten(1).T.tolist()
    assert (red, green, blue, white) == ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255])


@pytest.mark.parametrize("head", [b"P5 4 1 1\n", b"P5 4 1 7\n"])
def test_a_pgm_whose_numbers_pillow_would_scale_is_refused(tmp_path, head):
    (tmp_path / "mask.pgm").write_bytes(head + bytes([0, 1, 1, 0]))
    with pytest.raises(InputError, match="mask.pgm has [17] as its largest number, by which its numbers are scaled"):
        read_numbers(tmp_path / "mask.pgm")
    (tmp_path / "mask.pgm").write_bytes(b"P5 4 1 255\n" + bytes([0, 1, 1, 0]))
    assert read_numbers(tmp_path / "mask.pgm").tolist() == [[0, 1, 1, 0]]
