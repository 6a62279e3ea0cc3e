import json

import pytest
import torch
from PIL import Image

from semeda.data import camvid, read_label, scenes
from semeda.edge_net import (
    SHIPPED,
    cached_edge_net,
    edge_f1,
    exact_edge_net,
    load_edge_net,
    main,
    one_hot,
    save_edge_net,
    shipped_edge_net,
    soften,
    soften_like_a_network,
    softmax_edge_f1,
    synthetic_masks,
    train_edge_net,
    weights_hash,
)
from semeda.edges import InputError, edge_map
from semeda.losses import SemedaLoss
from tests.conftest import ROOT, real_data


@pytest.fixture(scope="module")
def trained():
    return train_edge_net(scenes("train", 60).labels, 7, steps=300)


def test_finds_the_edges_of_scenes_never_seen(trained):
    assert edge_f1(trained, scenes("val", 20).labels) > .97


def test_frozen(trained):
    assert not any(p.requires_grad for p in trained.parameters()) and not trained.training


def test_files(trained, tmp_path):
    path = tmp_path / "nets" / "a.safetensors"
    save_edge_net(trained, path, data="scenes")
    assert weights_hash(load_edge_net(path)) == weights_hash(trained)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=str(path)):
        load_edge_net(path)
    with pytest.raises(InputError, match="no.safetensors"):
        load_edge_net(tmp_path / "no.safetensors")


def test_cache_knows_labels_and_settings(tmp_path):
    masks = scenes("train", 4).labels
    cached_edge_net(masks, 7, tmp_path, steps=2)
    cached_edge_net(masks, 7, tmp_path, steps=2)
    assert len(list(tmp_path.iterdir())) == 1
    cached_edge_net(masks, 7, tmp_path, steps=3)
    cached_edge_net(masks[:3], 7, tmp_path, steps=2)
    assert len(list(tmp_path.iterdir())) == 3


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_edge_net(scenes("train", 4).labels, 7, steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_one_hot_and_soften():
    labels = torch.tensor([[[0, 2, 255]]])
    masks = one_hot(labels, 3)
    assert masks[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert one_hot(labels, 3, ignore_index=2)[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    soft = soften(masks)
    assert torch.allclose(soft.sum(1)[0, 0], torch.tensor([1., 1., 0.]))


def test_sees_no_edge_at_border_and_void(trained):
    labels = torch.full((1, 30, 30), 3)
    labels[:, 10:20, 10:20] = 255
    assert (trained(one_hot(labels, 7))[0, 1][labels[0] != 255] < .5).all()


@pytest.mark.parametrize("classes", [2, 7, 21])
def test_the_exact_net_is_exact(classes):
    masks = synthetic_masks(classes, 20, size=40, seed=3)
    assert {255} < set(torch.stack(masks).unique().tolist())
    assert edge_f1(exact_edge_net(classes), masks) == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_nets_know_masks_never_trained_on(name):
    net = shipped_edge_net(name)
    assert edge_f1(net, synthetic_masks(net.num_classes, 30, seed=9)) > .95
    assert SemedaLoss(name).num_classes == net.num_classes


def test_shipped_camvid_net_on_real_validation_masks():
    assert edge_f1(shipped_edge_net("camvid"), camvid("val", real_data("camvid")).labels[::5]) > .99


def test_shipped_voc_net_on_real_masks():
    files = sorted(real_data("voc_labels").glob("*.png"))[1::200]  # every second file, from the first on, was trained on
    assert edge_f1(shipped_edge_net("voc"), [read_label(f, 21) for f in files]) > .99


def write_masks(folder):
    folder.mkdir()
    for i, mask in enumerate(synthetic_masks(3, 4, size=40)):
        Image.fromarray(mask.numpy()).save(folder / f"{i}.png")
    return folder


def test_command_line(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert main([str(write_masks(tmp_path / "masks")), str(out), "--num-classes", "3", "--steps", "3", "--every", "2"]) == 0
    assert load_edge_net(out).num_classes == 3 and "never trained on" in capsys.readouterr().out


@pytest.mark.parametrize("spoil, args, words", [
    (lambda d: None, ["--num-classes", "2"], "contain 2; expected 0..1 or 255 (void)"),
    (lambda d: Image.new("RGB", (4, 4)).save(d / "0.png"), ["--num-classes", "3"], "0.png is a RGB image; expected one channel"),
    (lambda d: (d / "0.png").write_text("x"), ["--num-classes", "3"], "0.png cannot be decoded"),
    (lambda d: [f.unlink() for f in d.iterdir()], ["--num-classes", "3"], "expected a folder of label PNGs, or synthetic"),
    (lambda d: None, ["--num-classes", "3", "--steps", "0"], "steps is 0; expected at least 1"),
])
def test_command_line_bad_input(tmp_path, capsys, spoil, args, words):
    folder = write_masks(tmp_path / "masks")
    spoil(folder)
    assert main([str(folder), str(tmp_path / "net.safetensors"), *args]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "net.safetensors").exists()


def test_real_masks():
    root = real_data("camvid")
    net = train_edge_net(camvid("train", root).labels, 11)
    assert edge_f1(net, camvid("val", root).labels[::20]) > .95 # 0.968 to 0.98 by the number of threads


def test_model_card_tells_what_was_measured():
    card = (ROOT / "semeda" / "weights" / "MODEL_CARD.md").read_text()
    results = json.loads((ROOT / "results" / "edge_nets.json").read_text())
    for row in results["rows"]:
        f1 = row["f1"]
        assert f"| {row['net']}, {row['kind']} | {f1['voc']:.3f} | {f1['camvid']:.3f} | {f1['synthetic']:.3f} |" in card
        if row["kind"] == "shipped":
            assert row["weights"] == weights_hash(shipped_edge_net(row["net"])) and f1[row["net"] if row["net"] in f1 else "synthetic"] > .99


def test_softened_like_a_network():
    labels = torch.stack(synthetic_masks(5, 6, size=40)).long()
    draw = lambda: soften_like_a_network(one_hot(labels, 5), upsample=8, generator=torch.Generator().manual_seed(3))
    soft, edges = draw()
    void = labels == 255
    assert void.any() and (soft.movedim(1, -1)[void] == 0).all() and torch.allclose(soft.sum(1)[~void], torch.ones(()), atol=1e-5)
    classes = soft.argmax(1).masked_fill(void, 255)
    assert torch.equal(edges, edge_map(classes).long())
    assert (classes != labels)[~void].any(), "upsampling moves boundaries"
    assert all(torch.equal(a, b) for a, b in zip(draw(), (soft, edges)))


def test_soften_at_a_coarse_resolution():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[..., 8:] = 1
    soft = soften(one_hot(labels, 2), sigma=0., upsample=4)
    assert soft.shape == (1, 2, 16, 16) and torch.equal(soft.argmax(1), labels)
    steps = soft[0, 1, 0].diff()
    assert (steps >= -1e-6).all() and (steps > .01).sum() >= 3, "a ramp across the boundary"


def test_f1_on_softmax_outputs(trained):
    from scipy.ndimage import binary_dilation
    probabilities = torch.nn.functional.interpolate(3 * torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0)), size=(37, 41), mode="bilinear").softmax(1)
    truth = edge_map(probabilities.argmax(1)) == 1
    found = trained(probabilities)[:, 1] > .5
    for tolerance in (0, 1, 2):
        near = lambda m, tolerance=tolerance: torch.stack([torch.from_numpy(binary_dilation(x, [[1] * 3] * 3, tolerance) if tolerance else x.numpy()) for x in m])
        precision, recall = (found & near(truth)).sum() / found.sum(), (truth & near(found)).sum() / truth.sum()
        assert softmax_edge_f1(trained, probabilities, tolerance) == pytest.approx((2 * precision * recall / (precision + recall)).item())
    clean = one_hot(torch.stack(scenes("val", 2).labels).long() % 7, 7)
    assert softmax_edge_f1(exact_edge_net(7), clean) == 1
