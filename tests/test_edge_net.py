import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import semeda.edge_net
from semeda.core import InputError, weights_hash
from semeda.data import camvid, scenes
from semeda.edge_net import (
    edge_f1,
    edge_recall_by_pair,
    exact_edge_net,
    one_hot,
    soften,
    soften_like_a_network,
    softmax_edge_f1,
    train_edge_net,
)
from semeda.edge_net_files import (
    FIRST_NETS,
    SHIPPED,
    cached_edge_net,
    load_edge_net,
    main,
    save_edge_net,
    shipped_edge_net,
    shipped_version,
    synthetic_masks,
    with_void_contours,
)
from semeda.edges import edge_map
from semeda.losses import SemedaLoss
from semeda.reading import read_label
from tests.conftest import ROOT, real_data, run

NAN, INF = float("nan"), float("inf")
WIDE = Image.fromarray(np.full((4, 4), 280, np.uint16))


@pytest.fixture(scope="module")
def trained():
    return train_edge_net(scenes("train", 60).labels, 7, steps=450, crop=32)


def test_finds_the_edges_of_scenes_never_seen(trained):
    assert edge_f1(trained, scenes("val", 20).labels) > .97


def test_frozen(trained):
    assert not any(p.requires_grad for p in trained.parameters()) and not trained.training


def test_digits_of_the_first_version():
    "Nets, cached names and synthetic masks of one thread, as they were before the rooms were rebuilt"
    masks = synthetic_masks(5, 4, size=40, seed=3)
    assert sum(int(m.long().sum()) * 3**i for i, m in enumerate(masks)) == 2656636
    assert weights_hash(exact_edge_net(7)) == "4ab05cf488f33cc9"


def test_files(trained, tmp_path):
    path = tmp_path / "nets" / "a.safetensors"
    save_edge_net(trained, path, data="scenes")
    assert weights_hash(load_edge_net(path)) == weights_hash(trained)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    with pytest.raises(InputError, match="no.safetensors cannot be read"):
        load_edge_net(tmp_path / "no.safetensors")


def changed(**changes):
    "The weights of an Edge net of 3 classes, some of them exchanged or left out"
    state = exact_edge_net(3).state_dict() | {name.replace("_", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize("state, words", [
    (changed(conv1_weight=None), "has no conv1.weight; expected a file from save_edge_net"),
    (changed(conv3_bias=None), "has no conv3.bias; expected a file from save_edge_net"),
    (changed(conv1_weight=torch.zeros(16)), "has conv1.weight of shape (16,); expected (16, 1, 3, 3)"),
    (changed(conv1_weight=torch.zeros(16, 3, 5, 5)), "has conv1.weight of shape (16, 3, 5, 5); expected (16, 3, 3, 3)"),
    (changed(conv2_bias=torch.zeros(3)), "has conv2.bias of shape (3,); expected (32,)"),
    (changed(conv2_bias=torch.full((32,), NAN)), "has conv2.bias with values that are not finite"),
    (changed(conv2_bias=torch.zeros(32, dtype=torch.int32)), "has conv2.bias with values that are not finite"),
])
def test_file_of_other_weights_is_refused(tmp_path, state, words):
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(InputError) as error:
        load_edge_net(tmp_path / "x.safetensors")
    assert words in str(error.value) and "x.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_spoilt_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_edge_net(exact_edge_net(3), path)
    whole = path.read_bytes()
    for spoilt in (b"", whole[:7], whole[:100], whole[:-1], b"PK" + whole[2:]):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="x.safetensors cannot be read as safetensors"):
            load_edge_net(path)
    at = whole.rindex(np.float32(20).tobytes())
    path.write_bytes(whole[:at] + np.float32(21).tobytes() + whole[at + 4:])
    with pytest.raises(InputError, match=r"has weights \w{16}; expected \w{16}, as it was written"):
        load_edge_net(path)


def test_net_of_nan_is_not_written(tmp_path):
    net = exact_edge_net(3)
    net.conv2.bias[3] = NAN
    with pytest.raises(InputError, match="not finite"):
        save_edge_net(net, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="training with .*lr 1e\\+30 diverged"):
        cached_edge_net(synthetic_masks(3, 2, size=20), 3, tmp_path, steps=3, lr=1e30)
    assert not list(tmp_path.iterdir())


def test_cache_knows_labels_and_settings(tmp_path):
    masks = scenes("train", 4).labels
    first = cached_edge_net(masks, 7, tmp_path, steps=2)
    assert weights_hash(cached_edge_net(masks, 7, tmp_path, steps=2)) == weights_hash(first)
    assert len(list(tmp_path.iterdir())) == 1
    cached_edge_net(masks, 7, tmp_path, steps=3)
    cached_edge_net(masks[:3], 7, tmp_path, steps=2)
    assert len(list(tmp_path.iterdir())) == 3
    again = cached_edge_net(masks, 7, tmp_path, steps=2, start=first) # a net among the settings
    assert weights_hash(cached_edge_net(masks, 7, tmp_path, steps=2, start=first)) == weights_hash(again)
    assert weights_hash(again) != weights_hash(first) and len(list(tmp_path.iterdir())) == 4


def test_cache_tells_classes_apart_that_a_byte_does_not(tmp_path):
    for label in (3, 259):
        mask = torch.zeros(8, 8, dtype=torch.int64)
        mask[4:] = label
        cached_edge_net([mask], 300, tmp_path, steps=1, batch_size=1, crop=8)
    assert len(list(tmp_path.iterdir())) == 2
    for label in (156, -100): # void, and the class that is the same byte
        mask[4:] = label
        cached_edge_net([mask], 200, tmp_path, steps=1, batch_size=1, crop=8, ignore_index=-100)
    assert len(list(tmp_path.iterdir())) == 4


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_edge_net(scenes("train", 4).labels, 7, steps=2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("change, words", [
    (dict(masks=[]), "masks is empty; expected at least one label mask"),
    (dict(num_classes=2), "labels of mask 0 contain 2; expected 0..1 or 255 (void)"),
    (dict(num_classes=1), "num_classes is 1; expected at least 2"),
    (dict(masks=[torch.zeros(4, 4)]), "mask 0 have shape (4, 4) and are torch.float32; expected integers, (H, W)"),
    (dict(masks=[torch.zeros(1, 4, 4, dtype=torch.uint8)]), "labels of mask 0 have shape (1, 4, 4)"),
    (dict(masks=[torch.full((4, 4), -1)]), "labels of mask 0 contain -1; expected 0..2 or 255 (void)"),
    (dict(ignore_index=None), "ignore_index is None; expected an integer, such as -1 where there is no void"),
    (dict(scale=NAN), "scale is nan; expected a finite number"),
    (dict(sigma=INF), "sigma is inf; expected a finite number"),
    (dict(lr=NAN), "lr is nan; expected a finite number"),
    (dict(lr=-1.), "lr is -1.0; expected at least 0"),
    (dict(steps=0), "steps is 0; expected an integer, at least 1"),
    (dict(crop=2.5), "crop is 2.5; expected an integer, at least 1"),
    (dict(upsample=0), "upsample is 0; expected an integer, at least 1"),
])
def test_training_refuses(change, words):
    given = dict(masks=synthetic_masks(3, 2, size=20), num_classes=3) | change
    with pytest.raises(InputError) as error:
        train_edge_net(**given)
    assert words in str(error.value)


@pytest.mark.parametrize("num_classes", [0, 256, 300])
def test_synthetic_masks_have_classes_that_fit_their_bytes(num_classes):
    with pytest.raises(InputError, match=f"num_classes is {num_classes}; expected 1..255"):
        synthetic_masks(num_classes, 1, size=8)


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
    assert edge_f1(exact_edge_net(classes), masks + with_void_contours(masks)) == 1


def brute_pairs(mask, found):
    "Edge pixels of each two classes, and the found ones of them"
    height, width = mask.shape
    counts = {}
    for i in range(height):
        for j in range(width):
            window = mask[max(0, i - 1):i + 2, max(0, j - 1):j + 2]
            own = int(mask[i, j])
            for other in set(window.flatten().tolist()) - {own, 255} if own != 255 else ():
                total, hit = counts.get((min(own, other), max(own, other)), (0, 0))
                counts[min(own, other), max(own, other)] = total + 1, hit + bool(found[i, j])
    return counts


def test_recall_by_pair_is_the_definition():
    masks = synthetic_masks(4, 2, size=24, seed=5)
    net = train_edge_net(masks, 4, steps=40, batch_size=4, crop=24)
    total = {}
    for mask in masks:
        found = net(one_hot(mask[None].long(), 4))[0, 1] > .5
        for pair, (pixels, hit) in brute_pairs(mask, found).items():
            total[pair] = [a + b for a, b in zip(total.get(pair, (0, 0)), (pixels, hit))]
    recall = edge_recall_by_pair(net, masks, least=20)
    assert recall == {pair: hit / pixels for pair, (pixels, hit) in total.items() if pixels >= 20} and len(recall) > 3
    assert list(recall.values()) == sorted(recall.values()) and min(recall.values()) < 1


def test_void_contours():
    masks = synthetic_masks(4, 30, size=48, seed=1)
    drawn = with_void_contours(masks)
    changed_pixels = [(new != old) for new, old in zip(drawn, masks)]
    assert all((new[c] == 255).all() for new, c in zip(drawn, changed_pixels))
    assert sum(c.any() for c in changed_pixels) > 25
    left = sum((edge_map(new) == 1).sum() for new in drawn) / sum((edge_map(old) == 1).sum() for old in masks)
    assert .1 < left < .6, "most edges are drawn over, and some are left"
    assert all(torch.equal(a, b) for a, b in zip(with_void_contours(masks), drawn))
    in_code_9 = [mask.masked_fill(mask == 255, 9) for mask in masks]
    drawn_9 = with_void_contours(in_code_9, ignore_index=9)
    assert all(torch.equal(a, b.masked_fill(b == 9, 255)) for a, b in zip(drawn, drawn_9))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_nets_know_masks_never_trained_on(name):
    net = shipped_edge_net(name)
    assert edge_f1(net, synthetic_masks(net.num_classes, 30, seed=9)) > .95
    assert SemedaLoss(name).num_classes == net.num_classes


def check_on(masks, name):
    "F1 and recall by pair of a shipped net, with void as it is"
    net = shipped_edge_net(name)
    assert edge_f1(net, masks) >= .99
    pairs = edge_recall_by_pair(net, [mask for mask in masks if (edge_map(mask) == 1).any()])
    assert min(pairs.values(), default=1) >= .95


def test_shipped_camvid_net_on_real_validation_masks():
    check_on(camvid("val", real_data("camvid")).labels[::5], "camvid")


def test_shipped_voc_net_on_real_masks_with_their_void_contours():
    files = sorted(real_data("voc_labels").glob("200[789]*.png"))[1::16] # others than those that were trained on
    masks = [read_label(f, 21) for f in files]
    contoured = [mask for mask in masks if (mask == 255).float().mean() > .01]
    assert len(contoured) > 50
    check_on(contoured, "voc")


@pytest.mark.parametrize("name", SHIPPED[:3])
def test_shipped_nets_are_not_misled_by_void_contours(name):
    classes = shipped_edge_net(name).num_classes
    check_on(with_void_contours(synthetic_masks(classes, 40, seed=11), seed=12), name)


def test_first_nets_are_known_by_their_hash():
    assert FIRST_NETS == {weights_hash(shipped_edge_net(name)): name for name in SHIPPED[3:]}
    assert shipped_version("camvid", weights_hash(shipped_edge_net("camvid_v1"))) == "camvid_v1"
    assert shipped_version("camvid", weights_hash(shipped_edge_net("camvid"))) == "camvid"
    assert shipped_version("camvid", None) == "camvid"


def write_masks(folder, count=4):
    folder.mkdir()
    for i, mask in enumerate(synthetic_masks(3, count, size=40)):
        Image.fromarray(mask.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("count, every, words", [
    (4, 2, "on 2 masks, never trained on"), (4, 1, "on 4 masks, its training masks"),
    (2, 9, "on 1 mask, never trained on"), (1, 9, "on 1 mask, its training masks"),
])
def test_command_line(tmp_path, capsys, count, every, words):
    out = tmp_path / "net.safetensors"
    folder = write_masks(tmp_path / "masks", count)
    assert main([str(folder), str(out), "--num-classes", "3", "--steps", "3", "--every", str(every)]) == 0
    told = capsys.readouterr()
    assert load_edge_net(out).num_classes == 3 and told.out.strip().endswith(words)
    assert "semeda-edge-net: warning: edge F1 is 0." in told.err, "three steps are too few"


@pytest.mark.parametrize("spoil, args, words", [
    (lambda d: None, ["--num-classes", "2"], "contain 2; expected 0..1 or 255 (void)"),
    (lambda d: Image.new("RGB", (4, 4)).save(d / "0.png"), ["--num-classes", "3"], "0.png is a RGB image"),
    (lambda d: (d / "0.png").write_text("x"), ["--num-classes", "3"], "0.png cannot be decoded"),
    (lambda d: WIDE.save(d / "0.png"), ["--num-classes", "3"], "contain 280; expected 0..2"),
    (lambda d: [f.unlink() for f in d.iterdir()], ["--num-classes", "3"], "expected a folder of label PNGs"),
    (lambda d: None, ["--num-classes", "256"], "num_classes is 256; expected 2..255"),
    (lambda d: None, ["--num-classes", "3", "--steps", "0"], "steps is 0; expected at least 1"),
    (lambda d: None, ["--num-classes", "3", "--every", "0"], "every is 0; expected at least 1"),
    (lambda d: None, ["--num-classes", "3", "--lr", "nan"], "lr is nan; expected a finite number"),
    (lambda d: None, ["--num-classes", "3", "--sigma", "inf"], "sigma is inf; expected a finite number"),
    (lambda d: None, ["--num-classes", "3", "--seed", f"{2**64}"], f"seed is {2**64}; expected at most"),
])
def test_command_line_bad_input(tmp_path, capsys, spoil, args, words):
    folder = write_masks(tmp_path / "masks")
    spoil(folder)
    assert main([str(folder), str(tmp_path / "net.safetensors"), *args]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize("out", ["masks", "masks/0.png/x.safetensors", "a\0b.safetensors", "x" * 300 + ".safetensors"])
def test_place_that_cannot_be_written_is_found_first(tmp_path, capsys, monkeypatch, out):
    folder = write_masks(tmp_path / "masks")
    monkeypatch.setattr("semeda.edge_net_files.train_edge_net", lambda *a, **k: pytest.fail("trained first"))
    assert main([str(folder), str(tmp_path / out), "--num-classes", "3"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("semeda-edge-net: out ")


@pytest.mark.parametrize("args, words", [
    (["--ignore-index", "1"], "ignore_index is 1 with synthetic masks; expected nothing"),
    (["--every", "2"], "every is 2 with synthetic masks; expected nothing"),
])
def test_what_synthetic_masks_do_not_use_is_refused(tmp_path, capsys, args, words):
    assert main(["synthetic", str(tmp_path / "x.safetensors"), "--num-classes", "3", *args]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path, capsys, file_limit):
    folder = write_masks(tmp_path / "masks")
    for size in (100, 5000): # not even the probe, and not the net
        file_limit(size)
        assert main([str(folder), str(tmp_path / "x.safetensors"), "--num-classes", "3", "--steps", "1"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "cannot be written" in line and [p.name for p in tmp_path.iterdir()] == ["masks"]


def test_the_module_is_a_command_too():
    done = run(sys.executable, "-m", "semeda.edge_net", "--version")
    assert done.returncode == 0 and done.stdout.startswith("semeda-edge-net ")


def test_command_line_help_says_a_name_once(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "--num-classes C" in told and "NUM_CLASSES" not in told and "None" not in told


def test_names_are_found_where_they_were():
    assert semeda.edge_net.load_edge_net is load_edge_net and semeda.edge_net.main is main
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        semeda.edge_net.nothing  # noqa: B018


def test_real_masks():
    root = real_data("camvid")
    net = train_edge_net(camvid("train", root).labels, 11, steps=300)
    assert edge_f1(net, camvid("val", root).labels[::20]) > .75 # 0.93; it varies by processor and threads


def test_model_card_tells_what_was_measured():
    card = (ROOT / "semeda" / "weights" / "MODEL_CARD.md").read_text()
    results = json.loads((ROOT / "results" / "edge_nets.json").read_text())
    for row in results["rows"]:
        f1 = row["f1"]
        assert f"| {row['net']}, {row['kind']} | {f1['voc']:.3f} | {f1['camvid']:.3f} | {f1['synthetic']:.3f} |" in card
        if row["kind"] == "shipped":
            assert row["weights"] == weights_hash(shipped_edge_net(f"{row['net']}_v1"))
    shipped = {row["net"]: row for row in results["shipped"]["rows"]}
    assert tuple(shipped) == SHIPPED
    for name, row in shipped.items():
        assert row["weights"] == weights_hash(shipped_edge_net(name)) and f"| `{name}` | {row['weights']} |" in card
        for kind, f1 in row["f1"].items():
            recall = row["lowest_recall"][kind]["recall"]
            assert f"{f1:.4f} | {recall:.3f}" in card
            assert name.endswith("_v1") or (f1 >= .99 and recall >= (.9 if kind == "thin" else .95))


def test_softened_like_a_network():
    labels = torch.stack(synthetic_masks(5, 6, size=40)).long()

    def draw():
        return soften_like_a_network(one_hot(labels, 5), upsample=8, generator=torch.Generator().manual_seed(3))

    soft, edges = draw()
    void = labels == 255
    assert void.any() and (soft.movedim(1, -1)[void] == 0).all()
    assert torch.allclose(soft.sum(1)[~void], torch.ones(()), atol=1e-5)
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
    coarse = 3 * torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0))
    probabilities = torch.nn.functional.interpolate(coarse, size=(37, 41), mode="bilinear").softmax(1)
    truth = edge_map(probabilities.argmax(1)) == 1
    found = trained(probabilities)[:, 1] > .5

    def near(masks, tolerance):
        if not tolerance:
            return masks
        return torch.stack([torch.from_numpy(binary_dilation(mask, [[1] * 3] * 3, tolerance)) for mask in masks])

    for tolerance in (0, 1, 2):
        precision = (found & near(truth, tolerance)).sum() / found.sum()
        recall = (truth & near(found, tolerance)).sum() / truth.sum()
        expected = (2 * precision * recall / (precision + recall)).item()
        assert softmax_edge_f1(trained, probabilities, tolerance) == pytest.approx(expected)
    clean = one_hot(torch.stack(scenes("val", 2).labels).long() % 7, 7)
    assert softmax_edge_f1(exact_edge_net(7), clean) == 1


@pytest.mark.parametrize("size", [(8, 16), (9, 17), (15, 10)])
def test_soften_averages_over_whole_blocks_and_what_is_left_at_the_border(size):
    masks = one_hot(torch.randint(3, (1, *size), generator=torch.Generator().manual_seed(0)), 3)
    coarse = torch.nn.functional.interpolate(masks, size=[-(-side // 4) for side in size], mode="area")
    noise = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(1))
    logits = torch.nn.functional.interpolate((coarse + .2 * noise) * 8, size=size, mode="bilinear")
    soft = soften(masks, generator=torch.Generator().manual_seed(1), upsample=4)
    assert torch.allclose(soft, logits.softmax(dim=1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_shipped_net_is_the_same_whatever_torchs_defaults_are(dtype):
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            net = shipped_edge_net("camvid")
    finally:
        torch.set_default_dtype(usual)
    for (name, value), other in zip(shipped_edge_net("camvid").state_dict().items(), net.state_dict().values()):
        assert torch.equal(value, other) and other.dtype == torch.float32, name
