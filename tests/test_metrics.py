import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semeda.edges import InputError, trimap
from semeda.metrics import TrimapIoU, iou, mean_iou, trimap_counts


def by_hand(prediction, label, keep, classes):
    "Mean IoU over the kept pixels, class by class"
    scores = []
    for c in range(classes):
        p, t = (prediction == c) & keep, (label == c) & keep
        if (p | t).any():
            scores.append((p & t).sum() / (p | t).sum())
    return np.mean(scores) if scores else np.nan


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(2, 20), st.sampled_from(["ignore", "label"]))
def test_every_width_equals_its_own_mask(seed, height, width, void):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.choice([0, 1, 2, 255], ((height + 3) // 4, (width + 3) // 4)), np.ones((4, 4), int))[:height, :width]
    prediction = rng.integers(0, 4, label.shape)
    metric = TrimapIoU(4, max_width=6, void=void)
    metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(label)[None])
    scores = metric.compute()
    np.testing.assert_allclose(scores["miou"], by_hand(prediction, label, label != 255, 4))
    for w in range(1, 7):
        region = trimap(torch.from_numpy(label), w, void=void).numpy()
        np.testing.assert_allclose(scores["boundary"][w - 1], by_hand(prediction, label, region == 1, 4))
        np.testing.assert_allclose(scores["non_boundary"][w - 1], by_hand(prediction, label, region == 0, 4))


def test_batches_and_order_do_not_matter():
    g = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(0, 3, (6, 20, 20), generator=g) for _ in "ab")
    one, two = TrimapIoU(3), TrimapIoU(3)
    one.update(predictions, labels)
    for i in (3, 1, 0, 5, 4, 2):
        two.update(predictions[i:i + 1], labels[i:i + 1])
    assert torch.equal(one.counts, two.counts)


def test_absent_class_is_left_out():
    counts = torch.tensor([[4, 0, 0], [0, 2, 0], [0, 0, 0]])
    assert iou(counts)[2].isnan() and mean_iou(counts) == 1


@pytest.mark.parametrize("prediction, label, words", [
    (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "predictions have shape (1, 2, 2); expected the labels' (1, 2, 3)"),
    (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2), "predictions lie in 3..3; expected 0..2"),
    (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 7), "labels lie in 7..7; expected 0..2"),
])
def test_bad_input(prediction, label, words):
    with pytest.raises(InputError) as e:
        trimap_counts(prediction.long(), label.long(), 3)
    assert str(e.value) == words
