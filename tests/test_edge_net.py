import pytest
import torch

from semeda.data import camvid, scenes
from semeda.edge_net import cached_edge_net, edge_f1, load_edge_net, one_hot, save_edge_net, soften, train_edge_net, weights_hash
from semeda.edges import InputError
from tests.conftest import real_data


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


def test_real_masks():
    root = real_data("camvid")
    net = train_edge_net(camvid("train", root).labels, 11)
    assert edge_f1(net, camvid("val", root).labels[::20]) > .97
