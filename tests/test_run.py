"""What a run leaves on the disk: whose it is, in which state, and what is refused."""
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from semeda.checkpoints import imagenet_file
from semeda.config import BEFORE, resolve
from semeda.core import InputError
from semeda.data import TrainingCrops, draw_scene, scenes
from semeda.edge_net import EdgeNet, random_edge_net
from semeda.edge_net_files import save_edge_net
from semeda.run import read_history, read_run_checkpoint, run_state, unlock_run, write_checkpoint
from semeda.trainer import Run, load_run, main
from semeda.trainer import train as train_run
from tests import old_run
from tests.conftest import ROOT, snapshot

SMALL = dict(
    iterations=4, batch_size=2, crop=24, edge_steps=5, checkpoint_every=2, log_every=1, val_every=2, max_width=3,
    device="cpu")


class BlindLoss(torch.nn.CrossEntropyLoss):
    "Somebody's loss, with a setting called void and nothing else of ours"
    void = "ignore"

    def __init__(self, ignore_index: int = 255):
        super().__init__(ignore_index=ignore_index)


def few(dataset, split, *_):
    "The built-in dataset with 6 and 2 scenes"
    return scenes(split, dict(train=6, val=2)[split], size=48)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr("semeda.run_setup.load_data", few)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A finished run; copy it before you change it"
    patch = pytest.MonkeyPatch()
    patch.setattr("semeda.run_setup.load_data", few)
    folder = train_run(None, **SMALL, loss="semeda", runs=str(tmp_path_factory.mktemp("runs"))).folder
    patch.undo()
    return folder


@pytest.fixture
def copied(done, tmp_path):
    "A copy of the finished run and of its Edge net"
    shutil.copytree(done.parent, tmp_path / "runs")
    return tmp_path / "runs" / done.name


def arguments(folder, *more, **changes):
    settings = SMALL | dict(loss="semeda", runs=str(folder.parent)) | changes
    return [*(f"--{k.replace('_', '-')}={v}" for k, v in settings.items()), *more]


def refused(capsys, args):
    "The one line of a command that ends with status 2; a progress bar may stand above it"
    assert main(args) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("semeda-train: ") and sum("semeda-train" in line for line in lines) == 1
    return lines[-1]


def test_files_of_a_run(done):
    assert sorted(p.name for p in done.iterdir()) == [
        "best.pt", "checkpoint.pt", "config.json", "edge_net.safetensors", "history.csv", "metrics.json", "run.yaml"]
    assert sorted(p.name for p in done.parent.iterdir()) == ["edge_nets", done.name] # no lock is left
    state = read_run_checkpoint(done / "checkpoint.pt")
    assert state["class_names"][0] == "background" and state["image_size"] is None and state["style"] == "torchvision"
    assert len(state["palette"]) == 7 and state["config"]["loss"] == "semeda"
    assert state["history"] == read_history(done / "history.csv")


def test_the_same_command_again_says_that_it_is_finished(copied, capsys, monkeypatch):
    before = snapshot(copied.parent)
    monkeypatch.setattr("semeda.run_setup.load_data", None) # nothing is read
    assert main(arguments(copied)) == 0
    told = "finished already, photographs not compared: --resume with more --iterations goes on, --overwrite"
    assert told in capsys.readouterr().out
    assert snapshot(copied.parent) == before
    line = refused(capsys, arguments(copied, iterations=6))
    assert "iterations 4 instead of 6" in line and "resume goes on with it, overwrite takes its place" in line
    assert snapshot(copied.parent) == before


def test_a_finished_run_is_opened_not_trained(copied):
    before = snapshot(copied)
    run = train_run(None, **SMALL, loss="semeda", runs=str(copied.parent), resume=True)
    assert run.metrics == json.loads((copied / "metrics.json").read_text()) and snapshot(copied) == before
    assert all(isinstance(v, float) for v in run.metrics["last_losses"].values())


def test_a_finished_run_with_data_elsewhere_says_that_it_is_finished(copied, tmp_path, capsys):
    "Its photographs are read and compared; it was printed as if it had trained"
    assert main(arguments(copied, data_root=tmp_path)) == 0
    out = capsys.readouterr().out
    assert "finished already, photographs compared: --resume" in out and "s a step" not in out


def test_resume_extends_and_overwrite_replaces(copied, tmp_path, capsys):
    kept = SMALL | dict(loss="semeda", runs=str(copied.parent))
    longer = train_run(None, **kept | dict(iterations=6), resume=True)
    assert longer._seconds and len(longer._seconds) == 2 and longer.metrics["iterations"] == 6
    assert longer.metrics["extended_from"] == [4] == read_run_checkpoint(copied / "checkpoint.pt")["extended_from"]
    assert json.loads((copied / "config.json").read_text())["extended_from"] == [4]
    assert main([*arguments(copied, iterations=7), "--resume"]) == 0
    assert "resume: " in (err := capsys.readouterr().err) and "was to end after 6 steps" in err
    assert json.loads((copied / "metrics.json").read_text())["extended_from"] == [4, 6]
    assert main(arguments(copied, iterations=7)) == 0
    assert "photographs not compared, extended from 6 steps: --resume" in capsys.readouterr().out
    longer = train_run(None, **kept | dict(iterations=6), overwrite=True)
    assert "extended_from" not in longer.metrics
    assert [row["step"] for row in read_history(copied / "history.csv")] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="iterations is|checkpoint .* is of step 6; expected at most iterations, 5"):
        train_run(None, **kept | dict(iterations=5), resume=True)
    (copied / "figures").mkdir()
    (copied / "figures" / "curves.png").touch() # of the run that was here
    other = train_run(None, **kept | dict(iterations=2, lr=.01), overwrite=True)
    assert not (copied / "figures").exists()
    assert other.metrics["iterations"] == 2 and read_run_checkpoint(copied / "checkpoint.pt")["config"]["lr"] == .01


def test_best_weights_and_patience(tmp_path, monkeypatch):
    scores = iter([.2, .5, .4, .3, .9])
    monkeypatch.setattr(Run, "_measure", lambda self: dict(miou=next(scores), boundary_miou=[.1]))
    run = train_run(None, **SMALL | dict(iterations=12, patience=2), loss="ppce", runs=str(tmp_path))
    assert run.metrics["stopped_at"] == 8 and run.metrics["iterations"] == 12 and run.metrics["miou"] == .3
    assert read_run_checkpoint(run.folder / "best.pt")["step"] == 4
    assert read_run_checkpoint(run.folder / "checkpoint.pt")["step"] == 8
    best = load_run(run.folder, best=True)
    assert best.metrics["miou"] == .9 and load_run(run.folder).metrics["miou"] == .3


def test_best_weights_are_of_a_step_that_a_resumed_run_has(tmp_path, monkeypatch):
    "A run that was killed after its best validation goes on from there, not from a checkpoint before it"
    scores = iter([.5, .9])
    def measure(self):
        return dict(miou=next(scores, None) or sys.exit(), boundary_miou=[.1])
    monkeypatch.setattr(Run, "_measure", measure)
    settings = SMALL | dict(iterations=12, val_every=2, checkpoint_every=12, loss="ppce", runs=str(tmp_path))
    with pytest.raises(SystemExit):
        train_run(None, **settings)
    folder = next(tmp_path.glob("*/best.pt")).parent
    steps = [read_run_checkpoint(folder / name)["step"] for name in ("best.pt", "checkpoint.pt")]
    assert steps == [4, 4]


def test_parameters_can_be_given_back(done, tmp_path, capsys):
    assert main([f"--config={done / 'run.yaml'}"]) == 0
    assert "finished already" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text("loss: ppce\nlr: [1]\n")
    assert "lr is [1]; expected a number" in refused(capsys, [f"--config={tmp_path / 'mine.yaml'}"])
    (tmp_path / "mine.yaml").write_text("- ppce")
    assert "holds a list; expected names and values" in refused(capsys, [f"--config={tmp_path / 'mine.yaml'}"])
    assert "cannot be read" in refused(capsys, [f"--config={tmp_path / 'none.yaml'}"])


def changed(path, change):
    "A file with other content"
    path.write_bytes(change(path.read_bytes()))


def flipped(data):
    "One bit in the middle, among the weights"
    return data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:]


@pytest.mark.parametrize("name, change, words", [
    ("checkpoint.pt", None, "has no checkpoint.pt; expected that of a finished run"),
    ("checkpoint.pt", flipped, "checkpoint.pt is damaged; expected the content that its hash"),
    ("checkpoint.pt", lambda data: data[:1000], "checkpoint.pt cannot be read"),
    ("checkpoint.pt", lambda data: b"", "checkpoint.pt cannot be read: it is empty"),
    ("metrics.json", None, "has no metrics.json; expected a finished run"),
    ("metrics.json", lambda data: b"{}", "metrics.json has no miou; expected the scores of a run"),
    ("metrics.json", lambda data: data[:50], "metrics.json cannot be read as JSON"),
    ("config.json", lambda data: b"[]", "config.json holds a list; expected a JSON dict"),
    ("config.json", lambda data: b"{}", "config.json has no config; expected that of a run"),
    ("config.json", lambda data: b"\xff\x00", "config.json cannot be read as JSON"),
    ("config.json", None, "config.json cannot be read"),
])
def test_spoilt_run_is_not_opened(copied, name, change, words):
    if change:
        changed(copied / name, change)
    else:
        (copied / name).unlink()
    with pytest.raises(InputError) as error:
        load_run(copied)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_flipped_bit_is_noticed_or_harmless(copied):
    "In the weights, the optimiser, the names and the archive's own tables"
    data, good = (copied / "checkpoint.pt").read_bytes(), read_run_checkpoint(copied / "checkpoint.pt")
    for place in range(7, len(data), len(data) // 12):
        (copied / "checkpoint.pt").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1:])
        try:
            state = read_run_checkpoint(copied / "checkpoint.pt")
        except InputError:
            continue
        assert state["hash"] == good["hash"]


@pytest.mark.parametrize("changes, words", [
    (dict(seed=1), "is of another run: seed 1 instead of 0"),
    (dict(loss="ppce"), "is of another run: loss ppce instead of semeda"),
    (dict(iterations=2), "has weights"), # an earlier step of the same run
])
def test_checkpoint_of_another_run(copied, tmp_path, changes, words):
    other = train_run(None, **SMALL | dict(loss="semeda") | changes, name="other", runs=str(copied.parent))
    shutil.copy(other.folder / "checkpoint.pt", copied / "checkpoint.pt")
    with pytest.raises(InputError, match=words):
        load_run(copied)
    if "iterations" not in changes: # an earlier step of the same run can be gone on from
        (copied / "metrics.json").unlink()
        with pytest.raises(InputError, match=words):
            train_run(None, **SMALL, loss="semeda", runs=str(copied.parent), resume=True)


def test_changed_edge_net_is_refused(copied, tmp_path):
    (copied / "metrics.json").unlink()
    from semeda.edge_net import load_edge_net, save_edge_net
    path = copied / "edge_net.safetensors"
    net = load_edge_net(path)
    with torch.no_grad():
        net.conv1.bias[0] += 1
    recorded = json.loads((copied / "config.json").read_text())["edge_net"]["weights"]
    save_edge_net(net, path)
    with pytest.raises(InputError, match=f"edge net|{recorded}"):
        train_run(None, **SMALL, loss="semeda", runs=str(copied.parent), resume=True)
    assert json.loads((copied / "config.json").read_text())["edge_net"]["weights"] == recorded


@pytest.mark.parametrize("spoil", [lambda t: t[:-9], lambda t: "", lambda t: t + t, lambda t: t.replace(",0.", ",x0.")])
def test_history_comes_back_from_the_checkpoint(copied, spoil):
    "history.csv is for people; a resumed run writes it anew"
    whole = (copied / "history.csv").read_bytes()
    (copied / "metrics.json").unlink()
    (copied / "history.csv").write_text(spoil(whole.decode()))
    train_run(None, **SMALL | dict(iterations=5), loss="semeda", runs=str(copied.parent), resume=True)
    assert (copied / "history.csv").read_bytes().startswith(whole)


def test_run_of_version_0_1(tmp_path, monkeypatch):
    "A run folder made by 62eaba6 is opened, is finished, and can be extended"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    old_run.write_inputs(tmp_path)
    shutil.copytree(ROOT / "tests" / "data" / "run_v1", tmp_path / "runs" / "run_v1")
    settings = old_run.SETTINGS | dict(data_root="photos", init_weights="initial.pth", runs="runs", name="run_v1")
    with pytest.raises(InputError, match="label_resize nearest instead of nearest-exact; upsampling stretched"):
        train_run(None, **settings | dict(iterations=5), resume=True)
    settings |= dict(label_resize="nearest", upsampling="stretched")
    opened = load_run("runs/run_v1")
    assert opened.metrics["final_weights"] == "6c3fb210c3b0bc8c" and len(opened.history) == 3
    before = snapshot(tmp_path)
    assert train_run(None, **settings).metrics["miou"] == opened.metrics["miou"] and snapshot(tmp_path) == before
    longer = train_run(None, **settings | dict(iterations=5), resume=True)
    assert [row["step"] for row in longer.history] == [1, 2, 3, 4, 5]
    history = tmp_path / "runs" / "run_v1" / "history.csv"
    shutil.copytree(ROOT / "tests" / "data" / "run_v1", tmp_path / "runs" / "again")
    history = tmp_path / "runs" / "again" / "history.csv"
    changed(history, lambda data: data[:-30])
    with pytest.raises(InputError, match="history.csv"):
        load_run("runs/again")


@pytest.mark.parametrize("changes, words", [
    (dict(loss="ppce(weight=(1, 2))"), "weight has 2 numbers; expected 7, one for each class"),
    (dict(loss="ppce(weight='x')"), "weight is 'x'; expected a number of at least 0 for each class"),
    (dict(loss="semeda(norm='l3')"), "norm is 'l3'; expected one of l1, l2"),
    (dict(loss="semeda(lambdas=3)"), "lambdas is 3; expected three weights"),
    (dict(loss="edge_iou(weight=-1)"), "weight is -1; expected at least 0"),
    (dict(loss="edge_iou(reaches='x')"), "reaches is 'x'; expected lengths in pixels"),
    (dict(loss="ppce", edge_net="text.safetensors"), "text.safetensors cannot be read as safetensors"),
])
def test_what_is_wrong_with_a_loss_is_told_before_anything_is_written(tmp_path, monkeypatch, capsys, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no Edge net")
    assert words in refused(capsys, arguments(tmp_path / "runs" / "x", **changes))
    assert not (tmp_path / "runs").exists()


def test_batch_norm_needs_more_than_one_value(tmp_path, capsys):
    line = refused(capsys, arguments(tmp_path / "runs" / "x", loss="ppce", batch_size=1, crop=2, val_every=0))
    assert "batch norm has one value a channel; expected a larger batch_size or crop, or batch_norm frozen" in line


@pytest.mark.parametrize("error, told", [
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\n"), "out of memory; expected"),
    (MemoryError(), "out of memory; expected a smaller batch_size, crop or image_size"),
    (InputError("a\nb.png cannot be read"), r"a\nb.png cannot be read"),
])
def test_errors_while_training_are_one_line(tmp_path, capsys, monkeypatch, error, told):
    def fail(**_): raise error
    monkeypatch.setattr("semeda.trainer.train", fail)
    assert told in refused(capsys, [f"--runs={tmp_path}"])


def test_an_error_of_the_program_is_not_hidden(tmp_path, monkeypatch):
    def fail(**_): raise RuntimeError("a fault")
    monkeypatch.setattr("semeda.trainer.train", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main([f"--runs={tmp_path}"])


def test_left_parts_are_no_obstacle(tmp_path):
    folder = tmp_path / "scenes-ppce-s0"
    folder.mkdir()
    for name in ("config.json.part", ".abc.part.json", ".xyz.part.pt"):
        (folder / name).write_text("{")
    run = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    assert not any("part" in p.name for p in run.folder.iterdir())


HOLD = """import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
input()"""


def test_two_processes_in_one_folder(copied, capsys):
    (copied / "metrics.json").unlink()
    before = snapshot(copied)
    lock = copied.parent / f".{copied.name}.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=-1, stdout=-1, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        line = refused(capsys, arguments(copied, "--resume"))
        assert "is written to by another process; expected it to end first" in line
        assert snapshot(copied) == before
    finally:
        other.kill()
        other.communicate()
    assert main(arguments(copied, "--resume")) == 0 # a killed process holds nothing
    assert run_state(copied) == "finished" and not list(copied.parent.glob(".*"))


def test_numbers_that_are_not_finite_end_a_run(tmp_path, capsys):
    args = arguments(tmp_path / "x", "--lr=1e6", "--log-every=100", "--checkpoint-every=100", loss="ppce", val_every=0)
    assert "training diverged, expected a smaller lr than 1000000.0" in refused(capsys, args)
    assert run_state(tmp_path / "scenes-ppce-s0") == "diverged"
    assert not (tmp_path / "scenes-ppce-s0" / "checkpoint.pt").exists()


def test_a_finished_run_opens_without_its_initial_weights(tmp_path, few_scenes):
    from semeda.networks import build_network

    settings = dict(backbone="resnet18", layers=3, output_stride=8, style="torchvision")
    weights = build_network("deeplab_v2", 3, **settings).backbone.state_dict()
    torch.save(weights, tmp_path / "trunk.pth")
    run = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path), init_weights=str(tmp_path / "trunk.pth"))
    (tmp_path / "trunk.pth").unlink()
    opened = load_run(run.folder)
    assert opened.metrics["miou"] == run.metrics["miou"]
    assert opened.record["initial_weights"] == run.record["initial_weights"]
    assert opened.init_report == run.init_report


def test_weights_of_imagenet_are_fetched_by_name(tmp_path, few_scenes, monkeypatch, capsys):
    from urllib.error import URLError

    import torchvision
    def no_network(url, file, *more):
        raise URLError("no network")
    def fetch(url, file, digits, progress):
        assert url.endswith("/resnet18-f37072fd.pth") and digits == "f37072fd"
        fetched.append(torchvision.models.resnet18().state_dict())
        torch.save(fetched[-1], file)
    fetched, given = [], SMALL | dict(loss="ppce", runs=str(tmp_path / "runs"), init_weights="imagenet")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError, match=r"no network.*; expected a connection, or that file in .*hub/checkpoints"):
        train_run(None, **given)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    run = train_run(None, **given)
    first = Run(None, **given | dict(name="again"))
    assert len(fetched) == 1 and torch.equal(first.net.backbone.conv1.weight, fetched[0]["conv1.weight"])
    assert load_run(run.folder).record["initial_weights"] == first.record["initial_weights"]
    with pytest.raises(InputError, match="'imagenet' and backbone 'se_resnet50'; expected a backbone of torchvision"):
        imagenet_file("se_resnet50")


@pytest.mark.parametrize("given, expected", [
    (dict(style="caffe", backbone="resnet50"), "'imagenet', which are in style torchvision; expected that style, or a"),
    (dict(init_style="caffe"), "'imagenet', which are in style torchvision"),
    (dict(network="torchvision.deeplabv3_resnet50"), "backbone 'resnet18'; expected backbone resnet50, that of net"),
])
def test_weights_of_imagenet_that_are_not_for_the_network(tmp_path, few_scenes, monkeypatch, given, expected):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *given: pytest.fail("fetched"))
    with pytest.raises(InputError, match=expected):
        Run(None, **SMALL | dict(loss="ppce", runs=str(tmp_path / "runs"), init_weights="imagenet") | given)


@pytest.mark.parametrize("batch_norm, told", [("frozen", True), ("affine", True), ("trained", False)])
def test_frozen_statistics_of_random_weights_are_told(tmp_path, few_scenes, capsys, batch_norm, told):
    args = [*arguments(tmp_path / "x", loss="ppce"), f"--batch-norm={batch_norm}", "--iterations=1"]
    assert main(args) == 0
    assert ("random weights, which have no statistics to keep" in capsys.readouterr().err) == told
    assert main([*args, "--iterations=2", "--resume"]) == 0
    assert "no statistics" not in capsys.readouterr().err
    assert main([*args, "--name=y", "--resume"]) == 0 # nothing to go on from: it begins
    assert ("no statistics" in capsys.readouterr().err) == told


def test_patience_is_at_its_end_after_a_kill_too(tmp_path, few_scenes):
    given = SMALL | dict(iterations=12, val_every=2, patience=1, lr=0., weight_decay=0., batch_norm="frozen")
    whole = train_run(None, **given, loss="ppce", runs=str(tmp_path), name="whole")
    killed = Run(None, **given, loss="ppce", runs=str(tmp_path), name="killed")
    killed.prepare()
    killed.fit()
    unlock_run(killed.folder) # here it was killed: no metrics.json
    again = train_run(None, **given, loss="ppce", runs=str(tmp_path), name="killed", resume=True)
    assert again.metrics["stopped_at"] == whole.metrics["stopped_at"] == 4
    assert again.metrics["final_weights"] == whole.metrics["final_weights"]


def test_a_finished_run_opens_without_its_edge_net_file(tmp_path, few_scenes):
    save_edge_net(EdgeNet(7), tmp_path / "edge.safetensors")
    given = SMALL | dict(loss="semeda", runs=str(tmp_path), edge_net=str(tmp_path / "edge.safetensors"))
    run = train_run(None, **given)
    (tmp_path / "edge.safetensors").unlink()
    assert load_run(run.folder).metrics["miou"] == run.metrics["miou"]
    save_edge_net(random_edge_net(7, seed=5), tmp_path / "edge.safetensors") # other weights under the same name
    with pytest.raises(InputError, match="edge.safetensors has weights .*, those of the finished run"):
        train_run(None, **given)


def test_classes_of_validation_are_those_of_training(tmp_path, monkeypatch):
    def other(names):
        def load(dataset, split, *_):
            data = few(dataset, split)
            return replace(data, class_names=names(data.class_names)) if split == "val" else data
        monkeypatch.setattr("semeda.run_setup.load_data", load)
        return dict(SMALL, loss="ppce", runs=str(tmp_path / "runs"))
    with pytest.raises(InputError, match="scenes calls class 1 '.*' in val; expected '.*', as in train"):
        train_run(None, **other(lambda names: [names[0], names[2], names[1], *names[3:]]))
    with pytest.raises(InputError, match="scenes has 6 classes in val; expected 7, as in train"):
        train_run(None, **other(lambda names: names[:6]))
    assert not (tmp_path / "runs").exists()


class Drifting(torch.nn.Module):
    "A loss with a state: each value is a little larger than the one before"
    def __init__(self, trained=False):
        super().__init__()
        self.terms = {}
        self.register_buffer("factor", torch.ones(()))
        if trained:
            self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, logits, labels):
        self.factor += .5 # not in place of the tensor that the graph holds
        return self.factor.clone() * torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)


@pytest.mark.parametrize("loss", ["tests.test_run:Drifting", "semeda+tests.test_run:Drifting"])
def test_a_loss_goes_on_with_its_state_and_has_no_weights(tmp_path, loss):
    given = SMALL | dict(loss=loss, runs=str(tmp_path))
    whole = train_run(None, **given, name="whole")
    killed = Run(None, **given, name="killed")
    killed.prepare()
    killed._set_up()
    killed._is_validated = lambda step: False
    killed.save = lambda step, save=killed.save: (save(step), step == 2 and sys.exit())
    with pytest.raises(SystemExit):
        killed._train_from(0)
    unlock_run(killed.folder)
    again = train_run(None, **given, name="killed", resume=True)
    assert again.metrics["final_weights"] == whole.metrics["final_weights"]
    kept = torch.load(again.folder / "checkpoint.pt", weights_only=True)["loss"]
    assert len(kept) == 1 and next(iter(kept)).endswith("factor") # and no Edge net
    with pytest.raises(InputError, match="has the parameter loss.scale, which would not be trained"):
        train_run(None, **given | dict(loss="tests.test_run:Drifting(trained=True)"), name="weights")
    assert not (tmp_path / "weights").exists()


def test_what_a_loss_has_kept_is_another_losss(tmp_path):
    given = SMALL | dict(loss="semeda+tests.test_run:Drifting", runs=str(tmp_path), iterations=2)
    path = train_run(None, **given, name="own").folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    run = Run(None, **given | dict(iterations=4), name="own", resume=True)
    run.prepare()
    run._set_up()
    write_checkpoint(path, state | dict(loss=dict(mean=torch.zeros(()))))
    with pytest.raises(InputError, match="checkpoint.pt has mean of the loss; expected .*factor"):
        run.load()
    unlock_run(run.folder)


def test_batch_norm_of_a_network_without_a_known_trunk_is_told(tmp_path, few_scenes, capsys):
    import tqdm
    given = SMALL | dict(loss="ppce", network="tests.test_run:Plain", batch_norm="frozen", runs=str(tmp_path))
    Run(tqdm.tqdm, **given)
    told = capsys.readouterr().err
    assert "batch_norm is 'frozen', which changes nothing: network tests.test_run:Plain" in told
    assert "which have no statistics to keep" not in told


class Plain(torch.nn.Sequential):
    "A network of one's own with batch-norm and no trunk"
    def __init__(self, num_classes):
        last = torch.nn.Conv2d(8, num_classes, 1)
        super().__init__(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), last)


def test_a_validation_that_fails_loses_no_steps(tmp_path, monkeypatch):
    given = SMALL | dict(loss="ppce", runs=str(tmp_path), checkpoint_every=100)
    whole = train_run(None, **given, name="whole")
    def fail(self):
        raise InputError("photo is damaged")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_measure", fail)
        with pytest.raises(InputError, match="photo is damaged"):
            train_run(None, **given, name="failed")
    state = read_run_checkpoint(tmp_path / "failed" / "checkpoint.pt")
    assert (state["step"], state["to_validate"]) == (2, True)
    again = train_run(None, **given, name="failed", resume=True)
    assert again.history == whole.history
    assert again.metrics["final_weights"] == whole.metrics["final_weights"]
    assert not read_run_checkpoint(tmp_path / "failed" / "checkpoint.pt")["to_validate"]


def test_an_opened_run_tells_what_it_was_trained_with(copied):
    record = json.loads((copied / "config.json").read_text()) | dict(device="Some GPU", git_commit="0")
    (copied / "config.json").write_text(json.dumps(record))
    assert load_run(copied).record == record


def test_a_validation_that_was_repeated_is_kept(tmp_path, monkeypatch):
    given = SMALL | dict(loss="ppce", runs=str(tmp_path), checkpoint_every=100)
    measure, calls = Run._measure, []
    def fail(self):
        calls.append(self)
        if len(calls) == 2: # at the last step
            raise InputError("photo is damaged")
        return measure(self)
    monkeypatch.setattr(Run, "_measure", fail)
    with pytest.raises(InputError, match="photo is damaged"):
        train_run(None, **given)
    run = train_run(None, **given, resume=True)
    assert read_history(run.folder / "history.csv")[-1]["val_miou"] == pytest.approx(run.metrics["miou"])
    assert read_run_checkpoint(run.folder / "checkpoint.pt")["history"] == run.history


def test_a_repeated_validation_keeps_the_random_states(tmp_path, monkeypatch):
    given = SMALL | dict(loss="ppce", runs=str(tmp_path), checkpoint_every=100)
    def fail(self):
        raise InputError("photo is damaged")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="photo is damaged"):
        patch.setattr(Run, "_measure", fail)
        train_run(None, **given)
    [path] = tmp_path.glob("*/checkpoint.pt")
    before = read_run_checkpoint(path)["random"]["torch"]
    def stopped(self, start):
        raise KeyboardInterrupt
    torch.manual_seed(123)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_train_from", stopped)
        train_run(None, **given, resume=True)
    state = read_run_checkpoint(path)
    assert torch.equal(state["random"]["torch"], before) and not state["to_validate"]


def test_an_edge_net_of_the_runs_own_folder_is_kept(copied):
    given = SMALL | dict(loss="semeda", runs=str(copied.parent), edge_net=str(copied / "edge_net.safetensors"))
    before = (copied / "edge_net.safetensors").read_bytes()
    train_run(None, **given, overwrite=True)
    assert (copied / "edge_net.safetensors").read_bytes() == before


def test_another_edge_net_in_another_process_is_refused(copied):
    run = Run(None, **SMALL, loss="semeda", runs=str(copied.parent), overwrite=True)
    run.edge_net = run._get_edge_net()
    with pytest.raises(InputError, match="edge net has weights .* in process 0; expected abc, those of process 0"):
        run._check_shared("abc")


@pytest.mark.parametrize("loss, void, told", [
    ("boundary_f1", "label", True), ("lovasz+trimap_lovasz", "label", True), ("boundary_f1", "ignore", False),
    ("trimap_lovasz(void='label')", "label", False), ("edge_iou", "label", False),
    ("tests.test_run:BlindLoss", "label", True), ("tests.test_run:BlindLoss", "ignore", False)])
def test_a_loss_that_is_blind_at_void_is_told(tmp_path, capsys, loss, void, told):
    Run(**SMALL | dict(loss=loss, void=void, runs=str(tmp_path)))
    blind = loss.split("+")[-1].split(":")[-1]
    expected = f"boundaries at void are scored, and of loss {loss} {blind} finds none there; consider its setting"
    assert (expected in capsys.readouterr().err) == told


def test_an_edge_net_that_finds_few_edges_is_told(tmp_path, capsys):
    train_run(**SMALL, loss="semeda", runs=str(tmp_path))
    assert "on the validation masks; expected 0.9 or more: its loss says little" in capsys.readouterr().err
    train_run(**SMALL | dict(edge_steps=400), loss="semeda", runs=str(tmp_path / "longer"))
    assert "expected 0.9 or more" not in capsys.readouterr().err


def test_logits_that_are_nan_in_validation_are_a_divergence(tmp_path, monkeypatch):
    predict = Run.predict
    def spoiled(self, image):
        self.net.register_forward_hook(lambda net, given, output: output * torch.nan if not net.training else None)
        return predict(self, image)
    monkeypatch.setattr(Run, "predict", spoiled)
    with pytest.raises(InputError, match="logits that are NaN.* at step 2; training diverged"):
        train_run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    [folder] = tmp_path.glob("*ppce*")
    assert run_state(folder) == "diverged" and json.loads((folder / "diverged.json").read_text())["step"] == 2


def test_logits_that_are_nan_in_another_process_are_a_divergence(tmp_path):
    from semeda.launchers import SharedError
    from semeda.segment import NotFinite

    run = Run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    run.fabric = SimpleNamespace(world_size=2, is_global_zero=False)
    def failed(step):
        raise NotFinite("logits that are NaN")
    run._validate = failed
    with pytest.raises(InputError, match="NaN at step 2; training diverged") as raised:
        run._try_to_validate(2)
    assert not isinstance(raised.value, SharedError) # the other process knows nothing of it
    assert json.loads((run.folder / "diverged.json").read_text())["step"] == 2


def test_a_run_goes_on_without_the_cache_of_edge_nets(copied, monkeypatch):
    "Where training the net anew would give another one"
    (copied / "metrics.json").unlink()
    shutil.rmtree(copied.parent / "edge_nets")
    monkeypatch.setattr("semeda.run_setup.cached_edge_net", None)
    run = train_run(None, **SMALL | dict(iterations=5), loss="semeda", runs=str(copied.parent), resume=True)
    assert run.history[-1]["step"] == 5 and not (copied.parent / "edge_nets").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_killed_before_the_settings_are_there(copied, monkeypatch, resume):
    "The folder stays that of a run"
    (copied / "metrics.json").unlink()
    more = dict(resume=True) if resume else dict(overwrite=True)
    with monkeypatch.context() as patch:
        kill_in_write(patch, 0)
        with pytest.raises(Killed):
            train_run(None, **SMALL, loss="semeda", runs=str(copied.parent), **more)
    assert (copied / "config.json").is_file()
    run = train_run(None, **SMALL, loss="semeda", runs=str(copied.parent), **more)
    assert run.metrics["iterations"] == SMALL["iterations"]


def test_a_history_with_figures_of_a_missing_plugin(copied):
    state = read_run_checkpoint(copied / "checkpoint.pt")
    state["history"][1]["val_own"] = .5
    write_checkpoint(copied / "checkpoint.pt", state)
    assert load_run(copied).history == state["history"] # it writes none
    before = snapshot(copied)
    with pytest.raises(InputError, match="checkpoint.pt has val_own in its history.* expected the plugins"):
        train_run(None, **SMALL | dict(iterations=5), loss="semeda", runs=str(copied.parent), resume=True)
    assert snapshot(copied) == before


@pytest.mark.parametrize("steps, rate", [(6, "rises again"), (3, "falls faster")])
def test_a_run_of_another_length_is_told(tmp_path, monkeypatch, capsys, steps, rate):
    import tqdm
    given, train_on = SMALL | dict(loss="ppce", runs=str(tmp_path)), Run._train_on
    def stopped(self, images, labels, step):
        if step == 3:
            raise KeyboardInterrupt
        return train_on(self, images, labels, step)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_train_on", stopped)
        train_run(None, **given)
    run = train_run(tqdm.tqdm, **given | dict(iterations=steps), resume=True)
    assert f"was to end after 4 steps, and its learning rate fell towards 0 there; it {rate}" in capsys.readouterr().err
    assert run.metrics["iterations"] == steps and run.metrics["extended_from"] == [4]


def test_a_diverged_run_is_not_begun_anew_over_its_checkpoint(copied, capsys):
    (copied / "metrics.json").unlink()
    (copied / "diverged.json").write_text(json.dumps(dict(step=4, error="training diverged")))
    before = snapshot(copied)
    assert "holds this run up to a checkpoint" in refused(capsys, arguments(copied))
    assert snapshot(copied) == before


def test_weights_that_do_not_fit(copied):
    state = read_run_checkpoint(copied / "checkpoint.pt")
    state["net"] = {name: value[:1] for name, value in state["net"].items() if value.ndim}
    write_checkpoint(copied / "checkpoint.pt", state)
    with pytest.raises(InputError, match="checkpoint.pt does not fit the network"):
        load_run(copied)


def test_full_disk_is_told_before_training(tmp_path, capsys, file_limit):
    file_limit(3_000_000)
    assert "has no space for a checkpoint" in refused(capsys, arguments(tmp_path / "runs" / "x", loss="ppce"))
    assert not (tmp_path / "runs").exists()


def test_full_disk_while_training(copied, capsys, monkeypatch, file_limit):
    "The last checkpoint stays, and the run goes on from it"
    before = (copied / "checkpoint.pt").read_bytes()
    monkeypatch.setattr("semeda.run_setup.probe_space", lambda *_: file_limit(1_000_000))
    line = refused(capsys, arguments(copied, "--resume", iterations=6))
    assert "checkpoint.pt cannot be written" in line
    assert (copied / "checkpoint.pt").read_bytes() == before and not list(copied.glob(".*"))


@pytest.mark.parametrize("runs, words", [
    ("file", "cannot be written to"), ("file/runs", "cannot be written to"), ("/proc/none", "cannot be written to")])
def test_folders_that_cannot_be_made(tmp_path, capsys, monkeypatch, runs, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("semeda.run_setup.load_data", None) # told before anything is read
    assert words in refused(capsys, [f"--runs={runs}"])


class Killed(BaseException):
    "Nothing after it is done, as after SIGKILL"


def kill_in_write(monkeypatch, number):
    "Leave a part of a file in place of its write number so and so"
    from semeda import core
    settle, writes = core._settle, []

    def kill(part, path):
        writes.append(path)
        if len(writes) - 1 == number:
            (path.parent / f".torn.part{path.suffix}").write_bytes(part.read_bytes()[:50])
            raise Killed
        settle(part, path)
    monkeypatch.setattr(core, "_settle", kill)
    return writes


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6, 9])
def test_killed_in_a_write_and_resumed(done, tmp_path, monkeypatch, number):
    "config.json, run.yaml, the Edge net, then history and best.pt, history and checkpoint.pt, twice, metrics.json"
    shutil.copytree(done.parent / "edge_nets", tmp_path / "edge_nets")
    with monkeypatch.context() as patch:
        writes = kill_in_write(patch, number)
        with pytest.raises(Killed):
            train_run(None, **SMALL, loss="semeda", runs=str(tmp_path))
    run = train_run(None, **SMALL, loss="semeda", runs=str(tmp_path), resume=True)
    assert run.metrics["final_weights"] == json.loads((done / "metrics.json").read_text())["final_weights"]
    assert (run.folder / "history.csv").read_bytes() == (done / "history.csv").read_bytes()
    assert sorted(p.name for p in run.folder.iterdir()) == sorted(p.name for p in done.iterdir()), writes[-1]
    assert not list(tmp_path.glob(".*"))


def test_random_states_are_restored(copied, monkeypatch):
    "What else draws numbers, such as dropout, goes on where it was"
    drawn = []

    def draw(loss, *batch):
        drawn.append(torch.rand(()).item())
        return loss(*batch)
    monkeypatch.setattr("semeda.trainer.loss_across_processes", draw)
    settings = SMALL | dict(loss="ppce", runs=str(copied.parent))
    train_run(None, **settings)
    whole, drawn[:] = list(drawn), []
    run = Run(None, **settings, name="part")
    monkeypatch.setattr(Run, "_is_saved", lambda self, step: step == 2)
    run.prepare()
    run.fit()
    drawn.clear()
    train_run(None, **settings, name="part", resume=True)
    assert drawn == whole[2:] and len(drawn) == 2


def test_a_run_is_not_trained_twice(tmp_path, few_scenes):
    "A notebook's cell that is run again"
    run = Run(None, **SMALL, loss="ppce", runs=str(tmp_path), name="twice")
    run.prepare()
    run.fit()
    steps = [point["step"] for point in run.history]
    with pytest.raises(InputError, match="fit was called before, and there is no checkpoint to go on from"):
        run.fit()
    assert [point["step"] for point in run.history] == steps


def test_other_initial_weights_are_refused(copied, monkeypatch):
    settings = SMALL | dict(loss="semeda", runs=str(copied.parent))
    monkeypatch.setattr("semeda.run_setup.weights_hash", lambda net: "0" * 16)
    with pytest.raises(InputError, match="holds another run: other initial_weights"):
        Run(None, **settings)


def test_a_refused_resume_changes_nothing(copied, capsys):
    before = snapshot(copied)
    line = refused(capsys, arguments(copied, "--resume", iterations=2))
    assert "is of step 4; expected at most iterations, 2" in line and snapshot(copied) == before
    data = (copied / "checkpoint.pt").read_bytes()
    (copied / "checkpoint.pt").write_bytes(data[:len(data) // 2])
    before = snapshot(copied)
    refused(capsys, arguments(copied, "--resume", iterations=6))
    assert snapshot(copied) == before


def test_a_finished_run_is_not_taken_for_one_of_other_photographs(tmp_path, capsys, monkeypatch):
    from semeda.data import load_data
    monkeypatch.setattr("semeda.run_setup.load_data", load_data)
    def photos(name, seeds):
        for split, part in (("train", seeds[:4]), ("val", seeds[4:])):
            for kind in ("images", "labels"):
                (tmp_path / name / split / kind).mkdir(parents=True)
            for seed in part:
                image, label = draw_scene(seed, 32)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / split / f"images/{seed}.png")
                Image.fromarray(label.numpy()).save(tmp_path / name / split / f"labels/{seed}.png")
    photos("one", range(6)), photos("other", range(10, 16))
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    args = ["--dataset=folder", "--num-classes=7", "--iterations=1", "--crop=32", "--batch-size=2", "--loss=ppce",
            "--device=cpu", f"--runs={tmp_path / 'runs'}"]
    assert main([*args, f"--data-root={tmp_path / 'one'}"]) == 0
    assert "holds another run: other data" in refused(capsys, [*args, f"--data-root={tmp_path / 'other'}"])
    assert main([*args, f"--data-root={tmp_path / 'moved'}"]) == 0 # the same photographs elsewhere


def test_a_score_that_is_not_there_is_told_as_none(copied, capsys):
    metrics = json.loads((copied / "metrics.json").read_text())
    (copied / "metrics.json").write_text(json.dumps(metrics | dict(boundary_miou=[None] * len(metrics["widths"]))))
    assert main(arguments(copied)) == 0
    assert "boundary mIoU at width 1 none; finished already" in capsys.readouterr().out


def test_a_stopped_run_does_not_start_anew_unasked(copied, capsys):
    (copied / "metrics.json").unlink()
    before = snapshot(copied)
    assert "holds this run up to a checkpoint; expected resume" in refused(capsys, arguments(copied))
    assert snapshot(copied) == before
    assert main(arguments(copied, "--resume")) == 0 and run_state(copied) == "finished"


@pytest.mark.parametrize("given, expected", [
    (["--row=table1_11"], dict(row="table1_11", loss="semeda", lambdas=[0., 1., 0.])),
    (["--loss=semeda"], dict(row="", loss="semeda", lambdas=[0., .25, 0.])),
    (["--loss=semeda", "--lambdas=1,0,0"], dict(loss="semeda", lambdas=[1., 0., 0.])),
    (["--preset=paper_voc"], dict(preset="paper_voc", backbone="resnet101", crop=321, loss="lovasz", momentum=.8)),
    (["--lr=.5"], dict(loss="lovasz", lr=.5, crop=24)),
])
def test_the_command_line_goes_before_a_file(tmp_path, given, expected):
    "With all that a row, a loss or a preset decides"
    from semeda.settings import write_settings
    from semeda.trainer import _given, resolve
    write_settings(tmp_path / "run.yaml", resolve(loss="lovasz", crop=24, momentum=.8)[0])
    config = resolve(**_given([f"--config={tmp_path / 'run.yaml'}", *given]))[0]
    assert {name: getattr(config, name) for name in expected} == expected


def test_values_of_ones_own_file_stay_beside_its_preset_or_loss(tmp_path, capsys):
    "A run's file holds all parameters, and leaves to the command line what that decides; this one means its own"
    from semeda.trainer import _given, resolve
    own = dict(dataset="folder", lr=.001, iterations=1000, backbone="resnet50", loss="semeda", lambdas="0,1,0")
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    for more in ([], ["--preset=folder_cpu"], ["--loss=semeda"]):
        config = resolve(**_given([f"--config={tmp_path / 'own.yaml'}", *more]))[0]
        assert (config.lr, config.iterations, config.backbone, config.lambdas) == (.001, 1000, "resnet50", [0., 1., 0.])
    assert not capsys.readouterr().err
    assert "lambdas" not in _given([f"--config={tmp_path / 'own.yaml'}", "--loss=ubernet"])
    words = f"config {tmp_path / 'own.yaml'}: lambdas left out, which row, loss or preset of the command line decide\n"
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("name", ["config.json", "run.yaml"])
def test_an_older_runs_file_is_read_as_the_run_was(tmp_path, name):
    "It has no word of how masks and logits were resized, which was another way"
    from semeda.settings import read_settings
    kept = {key: value for key, value in asdict(resolve(loss="ppce")[0]).items() if key not in BEFORE}
    (tmp_path / name).write_text(json.dumps(dict(config=kept) if name == "config.json" else kept))
    assert resolve(**read_settings(tmp_path / name))[0].upsampling == "stretched"
    assert read_settings(tmp_path / name)["label_resize"] == "nearest"
    (tmp_path / name).write_text(json.dumps(dict(loss="ppce", lr=.1))) # of one's own
    assert not BEFORE.keys() & read_settings(tmp_path / name).keys()


def test_a_runs_file_goes_with_any_number_of_processes(tmp_path, monkeypatch):
    from semeda import launchers
    from semeda.settings import write_settings
    from semeda.trainer import _given
    write_settings(tmp_path / "run.yaml", resolve(loss="ppce", batch_size=8)[0])
    monkeypatch.setitem(launchers.LAUNCHERS, "torchrun", lambda: (2, 1))
    assert resolve(**_given([f"--config={tmp_path / 'run.yaml'}"]))[0].devices == 2
    (tmp_path / "own.yaml").write_text("devices: 4")
    with pytest.raises(InputError, match="devices is 4; expected 2, as torchrun started"):
        resolve(**_given([f"--config={tmp_path / 'own.yaml'}"]))


def test_an_error_of_a_loading_process_is_one_line(tmp_path, capsys, monkeypatch):
    "torch tells it with the traceback of that process before it"
    from torch.utils.data import get_worker_info
    read = TrainingCrops.__getitem__
    def fails(self, k):
        if get_worker_info():
            raise InputError("label x.png is a RGB image; expected one channel")
        return read(self, k)
    monkeypatch.setattr(TrainingCrops, "__getitem__", fails)
    line = refused(capsys, arguments(tmp_path / "runs" / "x", loss="ppce", workers=1))
    assert line == "semeda-train: label x.png is a RGB image; expected one channel"


def test_a_row_is_trained_with_its_own_loss(capsys):
    assert "row is table1_11 but loss is lovasz; expected semeda or no row" in refused(
        capsys, ["--row=table1_11", "--loss=lovasz"])
    assert "lambdas is [5.0, 0.0, 0.0], which lovasz does not take; expected its own arguments, as in lovasz(weig" in (
        refused(capsys, ["--loss=lovasz", "--lambdas=5,0,0"]))


def test_overwrite_takes_the_place_of_runs_alone(tmp_path):
    "Another program's folder with a config.json of its own was emptied"
    folder = tmp_path / "model"
    (folder / "figures").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(model_type="bert")))
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="config.json has no config; expected that of a run"):
        train_run(None, **SMALL, loss="ppce", runs=str(tmp_path), name="model", overwrite=True)
    assert snapshot(tmp_path) == before
