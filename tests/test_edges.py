from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_cdt

from semeda.edges import InputError, chessboard_distance, edge_distance, edge_map, trimap

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 255]))
)


def brute_edges(labels, void):
    height, width = labels.shape
    edges = np.zeros(labels.shape, np.uint8)
    for i in range(height):
        for j in range(width):
            if void == "ignore" and labels[i, j] == 255:
                edges[i, j] = 255
                continue
            for p in range(max(0, i - 1), min(height, i + 2)):
                for q in range(max(0, j - 1), min(width, j + 2)):
                    if void == "ignore" and labels[p, q] == 255:
                        continue
                    edges[i, j] |= labels[p, q] != labels[i, j]
    return edges


@settings(max_examples=150, deadline=None)
@given(masks, st.sampled_from(["ignore", "label"]), st.sampled_from([np.int64, np.uint8]), st.booleans())
def test_edge_map_is_the_definition(labels, void, dtype, without_void):
    if without_void:
        labels = np.where(labels == 255, 0, labels)
    of_labels, expected = torch.from_numpy(labels.astype(dtype)), brute_edges(labels, void)
    assert np.array_equal(edge_map(of_labels, void=void).numpy(), expected)
    with mock.patch("torch.compiler.is_compiling", return_value=True): # the way of a GPU and a compiler
        assert np.array_equal(edge_map(of_labels, void=void).numpy(), expected)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_edge_map_of_hardly_any_pixels(shape, dtype):
    assert torch.equal(edge_map(torch.zeros(shape, dtype=dtype)), torch.zeros(shape, dtype=torch.uint8))


@settings(max_examples=150, deadline=None)
@given(masks, st.sampled_from(["ignore", "label"]), st.integers(1, 12))
def test_trimap_is_the_definition(labels, void, width):
    points = np.argwhere(brute_edges(labels, void) == 1)
    expected = np.zeros(labels.shape, np.uint8)
    for i, j in np.ndindex(labels.shape):
        near = len(points) and np.abs(points - (i, j)).max(axis=1).min() < width
        expected[i, j] = 255 if labels[i, j] == 255 else near
    assert np.array_equal(trimap(torch.from_numpy(labels), width, void=void).numpy(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (50, 70)])
@pytest.mark.parametrize("cap", [1, 2, 7, 40, 254])
def test_chessboard_distance_equals_scipy(shape, cap):
    mask = np.random.default_rng(0).random(shape) < .002
    mask.flat[-1] = True
    expected = np.minimum(distance_transform_cdt(~mask, "chessboard"), cap)
    assert np.array_equal(chessboard_distance(torch.from_numpy(mask), cap).numpy(), expected)


def test_no_edge_at_all():
    labels = torch.full((4, 5), 3)
    assert (edge_map(labels) == 0).all()
    assert (edge_distance(labels, 7) == 7).all()


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (2, 5, 6, 1), (2, 5, 1, 7), (2, 5, 2, 2)])
def test_batches_and_dtypes(shape):
    labels = torch.randint(0, 3, shape)
    whole = edge_map(labels)
    assert torch.equal(
        whole,
        torch.stack([torch.from_numpy(brute_edges(image, "label")) for image in labels.flatten(0, 1).numpy()]).view(
            shape
        ),
    )
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(edge_map(labels.to(dtype)), whole) and edge_map(labels.to(dtype)).is_contiguous()
    assert torch.equal(edge_map(labels[1, 2]), whole[1, 2])
    usual = edge_map(torch.where(labels == 2, 255, labels))
    for void, dtype in (
        (-100, torch.int64),
        (-100, torch.int8),
        (2, torch.uint8),
        (9, torch.uint8),
        (255, torch.uint8),
        (2, torch.int64),
    ):
        assert torch.equal(edge_map(torch.where(labels == 2, void, labels).to(dtype), ignore_index=void), usual)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: edge_map(torch.zeros(3, 3)), "labels are torch.float32; expected an integer dtype"),
        (lambda: edge_map(torch.zeros(3, dtype=torch.long)), "labels have shape (3,); expected (..., H, W)"),
        (
            lambda: edge_map(torch.zeros(3, 3, dtype=torch.long), void="skip"),
            "void is 'skip'; expected 'ignore' or 'label'",
        ),
        (lambda: trimap(torch.zeros(3, 3, dtype=torch.long), 0), "max_distance is 0; expected 1..254"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError) as e:
        call()
    assert str(e.value) == words
