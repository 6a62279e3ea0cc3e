import importlib.metadata
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from semeda.core import InputError
from semeda.data import scenes
from semeda.edge_net import EdgeNet
from semeda.loss_registry import TABLE1
from semeda.losses import SemedaLoss
from semeda.trainer import Run, load_run, main, resolve, runs_folder
from semeda.trainer import train as train_run
from tests.conftest import ROOT, real_data, snapshot

SMALL = dict(
    iterations=6, batch_size=2, crop=48, edge_steps=10, checkpoint_every=2, log_every=1, val_every=0, max_width=5
)
ARGS = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]


@pytest.fixture
def few_scenes(monkeypatch):
    "The built-in dataset with 12 and 4 scenes"
    monkeypatch.setattr(
        "semeda.run_setup.load_data", lambda dataset, split, *_: scenes(split, dict(train=12, val=4)[split])
    )


def result(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["cost"]
    return metrics


def photos(root):
    return ["--dataset=camvid", f"--data-root={root}", "--image-size="]


def test_the_same_command_gives_the_same_numbers(tmp_path, camvid_folder, capsys):
    outcomes = []
    for name in "ab":
        assert main([*ARGS, *photos(camvid_folder), "--loss=semeda", f"--runs={tmp_path / name}"]) == 0
        folder = tmp_path / name / "camvid-semeda-s0"
        record = json.loads((folder / "config.json").read_text())
        outcomes.append((result(folder), (folder / "history.csv").read_bytes(), record["edge_net"]))
    assert outcomes[0] == outcomes[1]
    assert "mIoU" in capsys.readouterr().out.splitlines()[-1]


def test_killed_and_resumed_run_ends_with_the_same_weights(tmp_path, camvid_folder):
    steps = ["--iterations=12", "--checkpoint-every=1", *photos(camvid_folder)]
    command = [sys.executable, "-m", "semeda.trainer", *ARGS, *steps, "--runs", str(tmp_path / "killed")]
    folder = tmp_path / "killed" / "camvid-semeda-s0"
    stop_after = random.randrange(2, 9)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    history = folder / "history.csv"
    while not history.exists() or history.read_text().count("\n") <= stop_after:
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    assert main([*ARGS, *steps, f"--runs={tmp_path / 'killed'}", "--resume"]) == 0
    assert json.loads((folder / "metrics.json").read_text())["cost"]["steps_timed"] <= 12 - (
        stop_after - 1
    )  # went on from the checkpoint
    assert main([*ARGS, *steps, f"--runs={tmp_path / 'whole'}"]) == 0
    assert result(folder) == result(tmp_path / "whole" / "camvid-semeda-s0"), f"killed after step {stop_after}"
    assert history.read_bytes() == (tmp_path / "whole" / "camvid-semeda-s0" / "history.csv").read_bytes()


def test_gradient_scale_is_resumed(tmp_path, few_scenes, monkeypatch):
    "A GPU's 16-mixed has one; a CPU's precisions have none, so this one is made up"
    from lightning_fabric.plugins.precision import Precision
    given = []
    monkeypatch.setattr(Precision, "state_dict", lambda self: dict(scale=1024., growth_tracker=7))
    monkeypatch.setattr(Precision, "load_state_dict", lambda self, state: given.append(state))
    settings = {**SMALL, "iterations": 4, "checkpoint_every": 2}
    run = train_run(None, **settings, loss="ppce", runs=str(tmp_path))
    assert not given
    (run.folder / "metrics.json").unlink()
    train_run(None, **settings, loss="ppce", runs=str(tmp_path), resume=True)
    assert given == [dict(scale=1024., growth_tracker=7)]


def test_checkpoint_runs_no_code(tmp_path, few_scenes):
    run = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    torch.save({"step": 6, "net": print}, run.folder / "checkpoint.pt")
    with pytest.raises(InputError, match="checkpoint.pt cannot be read"):
        load_run(run.folder)


def test_finished_run_can_be_opened(tmp_path, few_scenes):
    run = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    opened = load_run(run.folder)
    image = run.val_data.images[0]
    assert torch.equal(opened.predict(image), run.predict(image))
    assert opened.metrics["miou"] == run.metrics["miou"]
    record = json.loads((run.folder / "config.json").read_text())
    assert (
        record["versions"]["torch"] == importlib.metadata.version("torch")
        and record["data"]["train"] == run.train_data.fingerprint
    )
    assert record["config"]["lr"] == run.config.lr and "resnet18" in json.dumps(record["config"])


# Recorded from this code on one CPU, with masks and logits as versions before these parameters had them; others round
# differently in the last digits.
GOLDEN = dict(
    ppce=[1.826334, 0.747369, 1.439984], semeda=[1.886430, 0.780459, 1.473329], table1_11=[2.06672, 0.879747, 1.573059]
)


@pytest.mark.parametrize("loss", GOLDEN)
def test_golden_losses(tmp_path, monkeypatch, loss):
    count = dict(train=None, val=4)
    monkeypatch.setattr("semeda.run_setup.load_data", lambda dataset, split, *_: scenes(split, count[split]))
    run = train_run(
        None, **{**SMALL, "iterations": 3}, **{"row" if loss in TABLE1 else "loss": loss}, runs=str(tmp_path),
        label_resize="nearest", upsampling="stretched",
    )
    assert [row["loss"] for row in run.history] == pytest.approx(GOLDEN[loss], rel=2e-4)


# Table 1 of the paper, typed from its text: loss, lambda1..3, before or after ReLU, reported mIoU
PAPER = """ppce - - - - 64.1
ubernet 1 - - - 64.6
ubernet 0.5 - - - 64.3
ubernet 5 - - - 64.3
ppce_edges 1 0 - - 64.1
ppce_edges 5 0 - - 64.7
semeda 1 0 0 after 65.5
semeda 0 0.5 0 after 65.9
semeda 1 0 0 before 66.0
semeda 0.5 0 0 before 65.6
semeda 0 1 0 before 66.6
semeda 0 0 1 before 65.6
semeda 1 0.5 0.25 before 66.5
semeda 0.25 0.5 1 before 66.3""".splitlines()


@pytest.mark.parametrize("i", range(14))
def test_rows_of_table_1(tmp_path, few_scenes, i):
    loss, *lambdas, relu, reported = PAPER[i].split()
    run = train_run(None, **{**SMALL, "iterations": 2}, row=f"table1_{i + 1:02}", runs=str(tmp_path))
    assert run.config.loss == loss and TABLE1[f"table1_{i + 1:02}"]["reported"] == float(reported)
    if loss != "ppce":
        assert run.config.lambdas == [float(v) if v != "-" else 0. for v in lambdas]
    if loss == "semeda":
        assert run.config.relu == relu and run.loss.lambdas == tuple(run.config.lambdas)
    terms = {"ppce": {"ppce"}, "semeda": {"ppce", "semeda"}}.get(loss, {"ppce", "edges"})
    assert set(run.metrics["last_losses"]) == terms | {"loss"} and len(run.history) == 2
    assert run.net.edge_head is None or loss == "ubernet"


@pytest.mark.parametrize(
    "loss, network",
    [
        ("edge_weighted", "deeplab_v2"),
        ("smp.LovaszLoss", "deeplab_v2"),
        ("semeda+smp.DiceLoss", "smp.Unet"),
        ("semeda", "torchvision.lraspp_mobilenet_v3_large"),
    ],
)
def test_rivals_and_other_networks(tmp_path, few_scenes, loss, network):
    if "smp" in loss + network:
        pytest.importorskip(
            "segmentation_models_pytorch",
            reason="segmentation-models-pytorch is not installed: pip install 'semeda[peers]'",
        )
    run = train_run(None, **{**SMALL, "iterations": 2}, loss=loss, network=network, runs=str(tmp_path))
    assert set(run.metrics["last_losses"]) == {
        "loss",
        "ppce",
        *(["semeda"] if "semeda" in loss else []),
        *(["peer"] if "smp." in loss else []),
    }
    again = load_run(run.folder)
    image = run.val_data.images[0]
    assert torch.equal(again.predict(image), run.predict(image)) and 0 <= run.metrics["miou"] < 1


def test_default_weights():
    of = lambda **given: resolve(**given)[0].lambdas
    assert of(loss="semeda") == list(SemedaLoss(EdgeNet(3)).lambdas) == [0, .25, 0]
    assert (
        of(loss="semeda", dataset="voc_aug")
        == of(loss="semeda", preset="paper_cityscapes")
        == of(row="table1_11")
        == [0, 1, 0]
    )
    assert of(loss="ppce") == of(loss="ubernet", dataset="voc_aug") == [1, 0, 0]


def test_presets():
    config, preset = resolve(preset="paper_voc", dataset="voc_aug", data_root="x", lr=1.)
    assert config.lr == 1. and "lr" not in preset
    assert (config.backbone, config.style, config.crop, config.batch_size, config.batch_norm, config.void) == (
        "resnet101",
        "caffe",
        321,
        6,
        "frozen",
        "label",
    )
    config = resolve(dataset="cityscapes", data_root="x")[0]
    assert (config.preset, config.image_size, config.lr, config.lr * config.head_lr_factor) == (
        "paper_cityscapes",
        "1024x512",
        5e-4,
        5e-3,
    )
    config = resolve(row="table1_02")[0]
    assert config.loss == "ubernet" and config.lambdas == [1., 0., 0.]
    with pytest.raises(InputError, match=r"row is table1_02 but lambdas is \[3.0, 0.0, 0.0\]; expected \[1.0, "):
        resolve(row="table1_02", lambdas="3,0,0")


BAD = [
    (["--row", "table1_15"], "row is 'table1_15'; choose from table1_01"),
    (["--edge-net", "voc"], "edge_net voc has 21 classes; expected 7, those of scenes"),
    (["--loss", "ubernet", "--lambdas", "0,1,0"], "lambdas is [0.0, 1.0, 0.0]; expected lambda1,0,0 for ubernet"),
    (["--style", "caffe"], "style is 'caffe' but backbone is 'resnet18'"),
    (["--network", "unet"], "network is 'unet'; choose from deeplab_v2, smp.NAME, torchvision.NAME"),
    (
        ["--network", "smp.Unet", "--loss", "ubernet"],
        "network is 'smp.Unet'; expected deeplab_v2 for the edge head of ubernet",
    ),
    (["--loss", "sedema"], "loss is 'sedema'; choose from ppce, ubernet, ppce_edges, semeda"),
    (["--dataset", "cityscape"], "dataset is 'cityscape'; choose from scenes, camvid, voc_aug, cityscapes, folder"),
    (["--backbone", "vgg"], "backbone is 'vgg'; choose from resnet18, resnet50, resnet101"),
    (["--learning-rate", "1"], "unknown parameter '--learning-rate'; choose from dataset, data_root"),
    (["--iterations", "0"], "iterations is 0; expected at least 1"),
    (["--iterations", "2.5"], "iterations is '2.5'; expected an integer"),
    (["--batch-size", "-1"], "batch_size is -1; expected at least 1"),
    (["--crop", "0"], "crop is 0; expected at least 1"),
    (["--lambdas", "1,2"], "lambdas is '1,2'; expected a list of three numbers"),
    (["--image-size", "big"], "image_size is 'big'; expected WIDTHxHEIGHT"),
    (["--preset", "paper"], "preset is 'paper'; choose from"),
    (["--name", "../x"], "name is '../x'; expected a single folder name"),
    (["--name", ".."], "name is '..'; expected a single folder name"),
    (["--name", "a\0b"], "name is 'a\\x00b'; expected text"),
    (["--name", "n" * 300], "300 characters; expected at most 200"),
    (["--runs", "a\0b"], "runs is 'a\\x00b'; expected text"),
    (["--seed", str(2**32)], "seed is 4294967296; expected at most 4294967294"),
    (["--lr", "nan"], "lr is 'nan'; expected a number"),
    (["--momentum", "inf"], "momentum is 'inf'; expected a number"),
    (["--momentum", "1.5"], "momentum is 1.5; expected at most 1"),
    (["--lr", "1e300"], "lr is 1e+300; expected at most"),
    (["--edge-scale", "inf"], "edge_scale is 'inf'; expected a number"),
    (["--scale-max", "inf"], "scale_max is 'inf'; expected a number"),
    (["--crop", "100000000"], "crop is 100000000; expected at most 16384"),
    (["--lambdas", "0,inf,0"], "lambdas is '0,inf,0'; expected a list of three numbers"),
    (["--max-width", "3.7"], "max_width is '3.7'; expected an integer"),
    (["--image-size", "99999x99999"], "image_size is '99999x99999'; expected at most 16384 pixels a side"),
    (["--name", "\udcff"], "name is '\\udcff'"),
    (["--image-size", "²x²"], "image_size is '²x²'; expected WIDTHxHEIGHT"),
    (["--loss", "semeda+"], "loss is 'semeda+'; expected a loss on both sides of +"),
    (["--loss", "ubernet+"], "loss is 'ubernet+'"),
    (
        ["--loss", "ppce", "--edge-net", "nope"],
        "edge_net is 'nope'; expected one of voc, cityscapes, camvid, voc_v1, cityscapes_v1, camvid_v1, or a file",
    ),
    (["--data-root", "/nope"], "data_root is '/nope'"),
    (["--plugins", "nowhere"], "plugins: module 'nowhere' cannot be imported"),
    (["--crop"], "argument --crop: expected one argument"),
    (["--dataset", "camvid", "--data-root", "nowhere"], "data_root is 'nowhere'"),
    (["--dataset", "camvid"], "data_root is ''"),
    (["--patience", "3", "--val-every", "0"], "patience is 3 while val_every is 0, so nothing is compared"),
    (["--init-weights", "none.pth"], "init_weights none.pth does not exist"),
    (["--init-style", "caffe"], "init_style is 'caffe' without init_weights; expected nothing"),
    (["--init-weights", "other.pth"], "has conv1.weight of shape (1, 2); expected (64, 3, 7, 7)"),
]


@pytest.mark.parametrize("args, words", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_leaves_no_trace(tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1, 2)}, "other.pth")
    before = snapshot(tmp_path)
    assert main(args) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert snapshot(tmp_path) == before


def test_spoilt_dataset_leaves_no_trace(camvid_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = camvid_folder / "train" / "0001.png"
    path.write_bytes(path.read_bytes()[:-200])
    before = snapshot(tmp_path)
    assert main(["--dataset=camvid", f"--data-root={camvid_folder}"]) == 2
    assert "train/0001.png cannot be decoded" in capsys.readouterr().err.splitlines()[-1]
    assert before == snapshot(tmp_path)


def test_a_compiled_step_is_the_same_step(tmp_path, few_scenes, monkeypatch):
    "With the tracing of torch.compile but not its code, which takes minutes to make"
    pytest.importorskip("lightning_fabric.wrappers") # which keeps what compile was called with, from its import on
    modes, torch_compile = [], torch.compile
    monkeypatch.setattr(
        "torch.compile", lambda module, mode="again", **_: modes.append(mode) or torch_compile(module, backend="eager")
    )
    plain, compiled = (
        train_run(None, **SMALL, runs=str(tmp_path), name=name, compile=name) for name in ("", "default")
    )
    assert set(modes) == {"default", "again"} and plain.config.compile == "" and compiled.config.compile == "default"
    for a, b in zip(plain.net.state_dict().values(), compiled.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert compiled.history[-1]["semeda"] == pytest.approx(plain.history[-1]["semeda"], rel=1e-3)
    assert compiled.metrics["cost"]["seconds_of_first_step"] > 0
    assert load_run(compiled.folder).metrics["final_weights"] == compiled.metrics["final_weights"]


def test_a_run_with_channels_last_is_the_same_but_for_rounding(tmp_path, few_scenes):
    settings = SMALL | dict(runs=str(tmp_path), checkpoint_every=2)
    plain, other = (train_run(None, **settings, name=f"run{last}", channels_last=last) for last in (False, True))
    assert other.net.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert plain.record["initial_weights"] == other.record["initial_weights"]
    for a, b in zip(plain.net.state_dict().values(), other.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    opened = load_run(other.folder)
    assert opened.metrics["final_weights"] == other.metrics["final_weights"]
    assert opened.net.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    longer = settings | dict(name="runTrue", channels_last=True, resume=True, iterations=SMALL["iterations"] + 1)
    assert train_run(None, **longer).metrics["iterations"] == SMALL["iterations"] + 1
    with pytest.raises(InputError, match="channels_last True instead of False"):
        train_run(None, **settings, name="runTrue")


def test_a_run_that_is_scored_on_its_training_images_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("semeda.run_setup.load_data", lambda dataset, split, *_, **__: scenes("train", 4))
    train_run(**SMALL, loss="ppce", runs=str(tmp_path))
    assert "dataset scenes has the same images in train and val" in capsys.readouterr().err


def test_a_folder_belongs_to_one_run(tmp_path, few_scenes):
    run = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path))
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds another run: lr .* instead of 0.5"):
        train_run(None, **SMALL, loss="ppce", lr=.5, runs=str(tmp_path))
    assert snapshot(tmp_path) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="holds other files"):
        train_run(None, **SMALL, loss="ppce", name="mine", runs=str(tmp_path))
    assert run.folder.name == "scenes-ppce-s0"
    record = json.loads((run.folder / "config.json").read_text())
    del record["config"]["network"] # as written before there was this parameter
    (run.folder / "config.json").write_text(json.dumps(record))
    assert load_run(run.folder).metrics["miou"] == run.metrics["miou"]


def test_a_precision_that_the_cpu_emulates_is_told(few_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("semeda.optimise.bfloat16_slowdown", lambda: 31.4)
    line = "precision is 'bf16-mixed', which this CPU emulates: a convolution takes 31 times as long as with '32-true'"
    for precision, told in (("bf16-mixed", True), ("32-true", False)):
        Run(**SMALL, precision=precision, device="cpu", runs=str(tmp_path))
        assert (line in capsys.readouterr().err.splitlines()) == told


def test_half_precision_of_a_gpu_is_refused_on_a_cpu(few_scenes, tmp_path):
    with pytest.raises(InputError, match="precision is '16-mixed' on a CPU, .*; expected bf16-mixed or 32-true"):
        Run(None, **SMALL, precision="16-mixed", device="cpu", runs=str(tmp_path))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_on_a_gpu_as_on_the_cpu(tmp_path, few_scenes, precision):
    losses = [
        train_run(
            None,
            **{**SMALL, "device": device, "precision": precision if device == "cuda" else "32-true"},
            loss="semeda",
            name=device,
            runs=str(tmp_path),
        ).history[0]["loss"]
        for device in ("cpu", "cuda")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "32-true" else .05)


def test_divergence_is_told(tmp_path, few_scenes):
    with pytest.raises(InputError, match="training diverged, expected a smaller lr than 1000000") as error:
        train_run(None, **{**SMALL, "lr": 1e6, "iterations": 40}, loss="ppce", runs=str(tmp_path))
    folder = tmp_path / "scenes-ppce-s0"
    told = json.loads((folder / "diverged.json").read_text())
    assert (
        told["error"] == str(error.value)
        and f"at step {told['step']};" in told["error"]
        and not (folder / "metrics.json").exists()
    )
    Run(None, **{**SMALL, "lr": 1e6, "iterations": 40}, loss="ppce", runs=str(tmp_path), overwrite=True).prepare()
    assert not (folder / "diverged.json").exists() # another attempt has begun


def test_given_parameters_win_over_the_preset():
    config, preset = resolve(dataset="scenes", crop=50)
    assert config.crop == 50 and "crop" not in preset and config.iterations == preset["iterations"]
    assert resolve(dataset="camvid", data_root="x")[0].image_size == "240x180"


def test_runs_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "nbs")
    assert runs_folder() == ROOT / "runs"
    monkeypatch.chdir(tmp_path)
    assert runs_folder() == tmp_path / "runs" and str(runs_folder("x")) == "x"


def test_own_folder_and_real_photos(tmp_path):
    root = real_data("camvid")
    run = train_run(
        None,
        dataset="camvid",
        data_root=str(root),
        loss="semeda",
        init_weights=str(real_data("resnet18_imagenet_trunk.pth")),
        iterations=2,
        image_size="60x45",
        crop=40,
        edge_steps=10,
        val_every=0,
        runs=str(tmp_path),
    )
    assert run.init_report["missing"] == [] and len(run.metrics["iou"]) == 11


OWN_LOSSES = """
import torch
from torch import nn
class Base(nn.Module):
    def __init__(self, base): super().__init__(); self.base = base
    def forward(self, x, y): return 2 * self.base(x, y)
class Extra(Base):
    def forward(self, x, y):
        value = self.base(x, y); self.terms = dict(extra=value.detach()); return value
class Taken(nn.Module):
    TERMS = ("step",)
class Fails(nn.Module):
    def forward(self, x, y): raise KeyError("mine")
def loss(): return nn.CrossEntropyLoss(ignore_index=255)
"""


@pytest.mark.parametrize("loss, words", [
    ("ppce+own_losses:Base", "loss ppce+own_losses:Base keeps the terms None; expected a dictionary with some of ppce"),
    ("ppce+own_losses:Extra", "keeps the terms ['extra']; expected a dictionary with some of ppce"),
    ("own_losses:Taken", "has 'step' in TERMS, a column of every history; expected another name"),
    ("own_losses:Fails", "loss own_losses:Fails fails on logits of shape (2, 7, 48, 48) and labels 0..6: KeyError"),
    ("torch.nn:CrossEntropyLoss(reduction='none')", "gives a Tensor of shape (2, 48, 48); expected one number with a"),
])
def test_own_losses_that_cannot_be_trained_with_are_told_before_anything_is_written(
        tmp_path, few_scenes, monkeypatch, loss, words):
    (tmp_path / "own_losses.py").write_text(OWN_LOSSES)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(InputError) as e:
            train_run(None, **SMALL, loss=loss, runs=str(tmp_path / "runs"))
        assert words in str(e.value) and not (tmp_path / "runs").exists()
        run = train_run(None, **SMALL, loss="own_losses:loss", runs=str(tmp_path / "runs"))
        assert set(run.history[-1]) >= {"loss", "own"}
    finally:
        sys.modules.pop("own_losses", None)


def test_a_rate_of_0_is_told(tmp_path, few_scenes, capsys):
    train_run(**SMALL | dict(iterations=1), loss="ppce", lr=0, runs=str(tmp_path))
    assert "lr is 0, so nothing is trained" in capsys.readouterr().err
