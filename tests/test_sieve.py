"""The sieve against a definition that floods pixel by pixel, and its promises on random masks."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import sieve as benchmark
from semeda.core import InputError
from semeda.data import scenes
from semeda.sieve import sieve
from semeda.trainer import train

AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
BESIDE = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def neighbours(shape, pixel, steps):
    "Pixels next to one"
    for dy, dx in steps:
        y, x = pixel[0] + dy, pixel[1] + dx
        if 0 <= y < shape[0] and 0 <= x < shape[1]:
            yield y, x


def flooded(mask, void=255):
    "The pieces of a mask, each a set of pixels, by flooding"
    left = {tuple(map(int, p)) for p in np.argwhere(mask != void)}
    pieces = []
    while left:
        piece, front = set(), [left.pop()]
        while front:
            pixel = front.pop()
            piece.add(pixel)
            for other in neighbours(mask.shape, pixel, AROUND):
                if other in left and mask[other] == mask[pixel]:
                    left.remove(other)
                    front.append(other)
        pieces.append(piece)
    return pieces


def slow_sieve(mask, min_area, void=255):
    "The definition: rounds in which small pieces join the class with which they share most pixel sides"
    out, pieces = mask.copy(), flooded(mask, void)
    staying = {pixel for piece in pieces if len(piece) >= min_area for pixel in piece}
    waiting = [piece for piece in pieces if len(piece) < min_area]
    while True:
        joined = []
        for piece in waiting:
            around = [p for pixel in piece for p in neighbours(mask.shape, pixel, BESIDE) if p in staying]
            if around:
                votes = np.bincount([out[p] for p in around])
                joined.append((piece, votes.argmax()))
        if not joined:
            return out
        for piece, k in joined:
            for pixel in piece:
                out[pixel] = k
            staying |= piece
        waiting = [piece for piece in waiting if not piece <= staying]


@st.composite
def masks(draw, void=True):
    "Small masks, coarse or speckled, with or without void"
    seed, classes = draw(st.integers(0, 10**6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(seed)
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    mask = rng.integers(0, classes, (height, width)).astype(np.uint8)
    if draw(st.booleans()):
        mask = np.kron(mask, np.ones((3, 3), np.uint8))[:height, :width].copy()
        mask[rng.random(mask.shape) < .2] = rng.integers(0, classes)
    if void and draw(st.booleans()):
        mask[rng.random(mask.shape) < .3] = 255
    return mask


@pytest.mark.filterwarnings("ignore:mask holds 0 and 255") # one class and void
@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(0, 12))
def test_definition(mask, min_area):
    np.testing.assert_array_equal(sieve(mask, min_area), slow_sieve(mask, min_area))


@settings(max_examples=100, deadline=None)
@given(masks(void=False), st.integers(0, 12))
def test_no_small_piece_is_left(mask, min_area):
    "unless there are only small ones; and a second time changes nothing"
    found = sieve(mask, min_area)
    if max(map(len, flooded(mask))) >= min_area:
        assert min(map(len, flooded(found))) >= min_area
        np.testing.assert_array_equal(sieve(found, min_area), found)
    else:
        np.testing.assert_array_equal(found, mask)


@pytest.mark.filterwarnings("ignore:mask holds 0 and 255") # one class and void
@settings(max_examples=50, deadline=None)
@given(masks(), st.integers(2, 12))
def test_large_pieces_and_void_stay(mask, min_area):
    found = sieve(mask, min_area)
    np.testing.assert_array_equal(found == 255, mask == 255)
    for piece in flooded(mask):
        if len(piece) >= min_area:
            assert all(found[pixel] == mask[pixel] for pixel in piece)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_forms(dtype):
    "tensors and arrays, one image and several, views that are not contiguous"
    mask = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=dtype)
    want = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=dtype)
    before = mask.clone()
    for given_, wanted in ((mask, want), (mask.T, want.T), (torch.stack([mask, want]), torch.stack([want, want]))):
        found = sieve(given_, 2)
        assert found.dtype == dtype and torch.equal(found, wanted)
        np.testing.assert_array_equal(sieve(given_.numpy(), 2), wanted.numpy())
    assert torch.equal(mask, before)
    assert sieve(mask[:0], 2).shape == (0, 4) and sieve(mask[None][:0], 2).shape == (0, 3, 4)


def test_two_classes_as_bool_and_another_void():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    assert sieve(mask, 2).dtype == bool and not sieve(mask, 2).any()
    signed = np.where(mask, 1, 0)
    signed[0] = -100
    found = sieve(signed, 2, ignore_index=-100)
    assert (found[0] == -100).all() and not found[1:].any()


@pytest.mark.parametrize(
    "mask, min_area, words",
    [
        (np.zeros((2, 2)), 2, "mask is float64; expected class numbers of an integer dtype"),
        (torch.zeros(2, 2), 2, "mask is float32"),
        (np.zeros(4, int), 2, r"mask has shape \(4,\); expected \(H, W\) or \(B, H, W\)"),
        (np.full((2, 2), -1), 2, "mask contains -1; expected classes from 0 to 65535, or 255 for void"),
        (np.full((2, 2), 10**6), 2, "mask contains 1000000"),
        (np.zeros((2, 2), int), -1, "min_area is -1; expected a whole number of pixels"),
        (np.zeros((2, 2), int), 2.5, "min_area is 2.5"),
        (np.zeros((2, 2), int), True, "min_area is True"),
        (np.zeros((2, 2), int), "many", "min_area is 'many'"),
    ],
)
def test_bad_input(mask, min_area, words):
    with pytest.raises(InputError, match=words):
        sieve(mask, min_area)


def test_benchmark(tmp_path, monkeypatch, capsys):
    "finished runs alone, each once; at area 0 the run's own scores"
    monkeypatch.setattr("semeda.run_setup.load_data", lambda dataset, split, *_: scenes(split, 4))
    small = dict(iterations=2, batch_size=2, crop=48, val_every=0, max_width=5, loss="ppce", runs=str(tmp_path / "my"))
    run = train(None, **small)
    for name in ("broken", "scenes-ppce-s0.evaluation"):
        (tmp_path / "my" / name).mkdir()
    (tmp_path / "my" / "scenes-ppce-s0.evaluation" / "metrics.json").write_text("{}")
    asked = [str(tmp_path / "my"), "--areas", "12,3", "--out", str(tmp_path / "out")]
    assert benchmark.main(asked) == 0
    path = tmp_path / "out" / "my.json"
    written = path.read_bytes()
    found = json.loads(written)
    assert found["areas"] == [0, 3, 12] and list(found["runs"]) == ["scenes-ppce-s0"]
    scores = found["runs"]["scenes-ppce-s0"]["scores"]
    assert scores["0"]["miou"] == pytest.approx(run.metrics["miou"], abs=1e-6)
    assert scores["0"]["boundary_miou"] == pytest.approx(run.metrics["boundary_miou"][:2], abs=1e-6)
    assert scores["12"]["excess_fragments"] <= scores["3"]["excess_fragments"] <= scores["0"]["excess_fragments"]
    assert run.predict(run.val_data.images[0], min_area=12).equal(sieve(run.predict(run.val_data.images[0]), 12))
    assert benchmark.main(asked) == 0 and path.read_bytes() == written
    capsys.readouterr()
    for argv, words in (
        ([*asked[:1], "--areas", "5", *asked[3:]], "has areas [0, 3, 12]; expected [0, 5]"),
        ([*asked[:1], "--areas", "x"], "--areas is 'x'; expected numbers of pixels"),
        ([*asked[:1], "--areas=-4"], "--areas is '-4'; expected 0 or more"),
        ([str(tmp_path / "out")], "has no finished run; expected the folder of a study's runs"),
    ):
        assert benchmark.main(argv) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert words in line
    assert path.read_bytes() == written


def test_masks_of_0_and_255():
    "Where 255 is no void, it is a class as any"
    mask = np.zeros((8, 8), np.uint8)
    mask[2:7, 2:7] = 255
    mask[4, 4], mask[0, 7] = 0, 255
    with pytest.warns(UserWarning, match="0 and 255 alone, and 255 is void here"):
        assert np.array_equal(sieve(mask, 4), mask)
    whole = np.zeros((8, 8), np.uint8)
    whole[2:7, 2:7] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(sieve(mask, 4, None), whole)
        assert torch.equal(sieve(torch.from_numpy(mask), 4, None), torch.from_numpy(whole))
        sieve(np.zeros((2, 2), np.uint8), 4)
        with pytest.raises(InputError, match="mask contains -1; expected classes from 0 to 65535$"):
            sieve(np.full((2, 2), -1), 2, None)
