import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.models import ResNet18_Weights
from torchvision.transforms.v2.functional import normalize

from semeda.core import InputError, content_hash
from semeda.crops import (
    CAFFE_MEAN,
    IMAGENET_MEAN,
    RandomScale,
    TrainingCrops,
    epoch_order,
    normalise,
    training_transform,
)
from semeda.data import VOID, make_split, scenes


def split(labels):
    "One image whose colours show its labels"
    return make_split("test", [(labels * 30).expand(3, -1, -1).contiguous()], [labels], [str(i) for i in range(8)])


def test_crops_do_not_depend_on_workers_or_on_the_global_state():
    data = scenes("train", 10)
    def crops(workers):
        torch.manual_seed(workers)
        return list(DataLoader(TrainingCrops(data, 24, 64, seed=3), batch_size=4, num_workers=workers))
    for (a, b), (c, d) in zip(crops(0), crops(2)):
        assert torch.equal(a, c) and torch.equal(b, d)
    other = TrainingCrops(data, 24, 64, seed=4)[0][0]
    assert not torch.equal(other, TrainingCrops(data, 24, 64, seed=3)[0][0])


def test_crops_leave_the_random_state_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TrainingCrops(scenes("train", 10), 24, 64)[3]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed, labels, expected", [
    (0, "nearest", "34bb63f14daeb102"), (3, "nearest", "35a0ee75311f1ed9"),
    (0, "nearest-exact", "29810ad680ca601b"), (3, "nearest-exact", "03d844df05e14128"),
])
def test_the_sequence_is_that_of_every_version(seed, labels, expected):
    "Masks are resized by nearest neighbour, so their hash is the same on every machine"
    crops = TrainingCrops(scenes("train", 40), 1000, 128, seed=seed, labels=labels)
    assert content_hash(*(crops[k][1] for k in (0, 1, 7, 39, 40, 83, 500))) == expected


def test_the_seed_decides_on_the_order_and_the_number_on_the_transforms():
    data = split(torch.randint(0, 7, (30, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    first, second = (torch.stack([TrainingCrops(data, 9, 16, seed=s)[k][1] for k in range(5)]) for s in (0, 1))
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])
    orders = [epoch_order(20, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(map(tuple, orders))) == 4 and all(sorted(order) == list(range(20)) for order in orders)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scaled_mask_lies_on_its_image(axis):
    "An edge of the mask is nowhere further than half a pixel from that of the image, and on average at it"
    shifts = []
    for k in range(200):
        torch.manual_seed(k)
        place = int(torch.randint(15, 45, ()))
        edge = torch.zeros(61, 61, dtype=torch.uint8)
        edge.narrow(axis, place, 61 - place).fill_(1)
        image, mask = RandomScale(.5, 1.5)(tv_tensors.Image(255 * edge.expand(3, -1, -1)), tv_tensors.Mask(edge))
        shifts.append((image[0] / 255).sum(axis).mean() - mask.float().sum(axis).mean())
        assert isinstance(mask, tv_tensors.Mask) and mask.dtype == torch.uint8
    shifts = torch.stack(shifts)
    assert abs(shifts.mean()) < .1 and shifts.abs().max() < .55


def test_image_and_mask_move_together():
    labels = torch.randint(0, 7, (12, 12), dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    data = split(labels)
    for k in range(10):
        image, mask = TrainingCrops(data, 10, 80, (1., 1.), seed=0)[k]
        expected = normalise((mask * 30).to(torch.uint8).expand(3, -1, -1))
        known = mask != VOID
        assert known.any() and torch.allclose(image[:, known], expected[:, known])


def test_padding_is_void_on_every_side():
    "Outside of the image the mask is void and the image ImageNet's mean; the image is whole and upright within"
    data = split(torch.arange(1, 7, dtype=torch.uint8).view(2, 3))
    padding = normalise(torch.tensor([round(255 * m) for m in IMAGENET_MEAN], dtype=torch.uint8).view(3, 1, 1))
    corners = set()
    for k in range(40):
        image, mask = TrainingCrops(data, 40, 5, (1., 1.), seed=1)[k]
        inside = mask != VOID
        assert int(inside.sum()) == 6 and 0 not in mask
        rows, columns = inside.nonzero().unbind(1)
        box = mask[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
        assert box.tolist() in ([[1, 2, 3], [4, 5, 6]], [[3, 2, 1], [6, 5, 4]])
        assert torch.allclose(image[:, ~inside], padding.flatten(1).expand(3, 19))
        corners.add((int(rows.min()), int(columns.min())))
    assert {row for row, _ in corners} == {0, 1, 2, 3} and {column for _, column in corners} == {0, 1, 2}


def test_about_half_of_the_crops_are_mirrored():
    data = split(torch.arange(1, 7, dtype=torch.uint8).view(2, 3))
    mirrored = [TrainingCrops(data, 60, 2, (1., 1.))[k][1].diff(dim=1)[0, 0] < 0 for k in range(60)]
    assert 20 <= sum(mirrored) <= 40


def test_scales_fill_their_range():
    data = split(torch.ones(40, 40, dtype=torch.uint8))
    sides = [(TrainingCrops(data, 30, 80, (.5, 2.))[k][1] != VOID).sum().item() ** .5 for k in range(30)]
    assert 20 <= min(sides) < 25 and 73 < max(sides) <= 80


def test_caffe_images_are_bgr_without_scale():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[0] = 255
    expected = torch.tensor([0., 0., 255.]) - torch.tensor(CAFFE_MEAN)
    assert torch.allclose(normalise(image, style="caffe")[:, 0, 0], expected)


@pytest.mark.parametrize("make, words", [
    (lambda: training_transform(0), "crop is 0; expected 1..16384"),
    (lambda: training_transform(10**8), "crop is 100000000; expected 1..16384"),
    (lambda: training_transform(8, style="bgr"), "style is 'bgr'; choose from torchvision, caffe"),
    (lambda: RandomScale(.5, float("inf")), "scale_max is inf; expected a finite number"),
    (lambda: RandomScale(0, 1), "scale_min is 0; expected at least 0.01"),
    (lambda: RandomScale(1, 1, "linear"), "label_resize is 'linear'; choose from nearest-exact, nearest"),
    (lambda: normalise(torch.zeros(3, 2, 2).byte(), style="Caffe"), "style is 'Caffe'; choose from torchvision, caffe"),
    (lambda: normalise(torch.zeros(3, 2, 2)), "image is torch.float32 of shape (3, 2, 2); expected uint8 (..., 3, H"),
    (lambda: normalise(torch.zeros(2, 2, 3).byte()), "of shape (2, 2, 3); expected uint8 (..., 3, H, W)"),
    (lambda: RandomScale(2, 1), "scale_min is 2; expected at most scale_max, 1"),
])
def test_bad_arguments(make, words):
    with pytest.raises(InputError) as e:
        make()
    assert words in str(e.value)


def test_normalise_is_torchvisions_and_caffes():
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    image = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = normalize(image / 255, preset.mean, preset.std)
    assert torch.allclose(normalise(image), expected, atol=1e-6)
    blue_first = image.flip(1).float() - torch.tensor(CAFFE_MEAN).view(3, 1, 1)
    assert torch.allclose(normalise(image, style="caffe"), blue_first, atol=1e-4)
