"""One run over several processes: the same weights as one process, and no process left waiting."""
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from semeda import run_setup, trainer
from semeda.core import InputError
from semeda.deeplab import DeepLabV2
from semeda.launchers import end_with_main_process
from semeda.networks import build_network
from semeda.trainer import Run, main, resolve, sync_batch_norm
from semeda.trainer import train as train_run
from tests.conftest import ROOT, run, write_camvid

SMALL = dict(
    device="cpu",
    dataset="camvid",
    edge_net="camvid",
    image_size="",
    layers=2,
    iterations=4,
    batch_size=4,
    crop=40,
    log_every=1,
    val_every=2,
    max_width=3,
)
LOSSES = ("ppce_edges", "ubernet", "edge_weighted")
A_PIXEL = 5e-4 # that a score moves by where a pixel's two largest logits are equal but for rounding


def arguments(root, name, **changes):
    return dict(SMALL, data_root=str(root / "camvid"), runs=str(root / "runs"), name=name) | changes


def train(root, name, **changes):
    return train_run(None, **arguments(root, name, **changes))


def torchrun(**given):
    "Two processes; at a timeout torchrun is asked to end them, which killing it would not do"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "semeda.trainer",
        *(f"--{k}={v}" for k, v in given.items()),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try: out, err = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    return process.returncode, out, err


class Stop(Exception):
    pass


def stopped(root, name, **changes):
    "A run that ends at step 2, after its checkpoint"
    save = Run.save

    def save_and_stop(self, step):
        save(self, step)
        if step == 2: raise Stop
    Run.save = save_and_stop
    try: train(root, name, checkpoint_every=2, **changes)
    except Stop: assert not (root / "runs" / name / "metrics.json").exists()
    else: raise AssertionError("the run has not been stopped")
    finally: Run.save = save


def two_processes(root):
    "What two processes do together: several runs, since starting takes longer than training"
    two = dict(devices=2)
    train(root, "one-two", checkpoint_every=2, resume=True, **two)
    stopped(root, "two-one", **two)
    for loss in LOSSES:
        train(root, f"{loss}-2", loss=loss, iterations=2, **two)
    across, trainer.loss_across_processes = trainer.loss_across_processes, lambda loss, *batch: loss(*batch)
    train(root, "naive", **two)
    trainer.loss_across_processes = across
    load = run_setup.load_data

    rank = torch.distributed.get_rank()

    own = root / ("runs" if rank == 0 else "elsewhere") # as on a machine that does not see the first one's
    for _ in range(2): # the second time it is finished, which the first machine alone can see
        found = train(root, "apart", **two, runs=str(own), iterations=2)
        (root / f"apart-{rank}.txt").write_text(str(found.metrics["miou"]))

    def spoilt_for_one(*args):
        if rank == 1: raise InputError("spoilt here")
        return load(*args)
    run_setup.load_data = spoilt_for_one
    try: train(root, "spoilt", **two)
    except InputError as e: (root / f"told-{rank}.txt").write_text(f"{e} {trainer.is_reporting_process(e)}")
    run_setup.load_data = load
    trainer.time.sleep = lambda seconds: None # in which torchrun would end the others
    command = [f"--{name}={value}" for name, value in arguments(root / "broken", "bad", **two).items()]
    with open(root / f"stderr-{rank}.txt", "w") as lines, redirect_stderr(lines):
        assert main(command) == 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Runs of one process, then of two that Fabric starts, then of one; one process has more void in its crops"
    root = tmp_path_factory.mktemp("scale")
    for path in sorted(write_camvid(root / "camvid", count=(5, 3), size=(48, 36)).glob("*annot/*.png"))[1::2]:
        labels = np.array(Image.open(path))
        labels[:, 16:] = 11
        Image.fromarray(labels).save(path)
    train(root, "whole")
    stopped(root, "one-two")
    for loss in LOSSES:
        train(root, f"{loss}-1", loss=loss, iterations=2)
    shutil.copytree(root / "camvid", root / "broken" / "camvid")
    path = root / "broken" / "camvid" / "train" / "0001.png"
    path.write_bytes(path.read_bytes()[:-200])
    done = run(sys.executable, __file__, root)
    assert done.returncode == 0, done.stderr
    train(root, "two-one", checkpoint_every=2, resume=True)
    yield root
    torch.set_flush_denormal(False)


def difference(root, a, b):
    "The largest of any tensor of weights, relative to the tensor's largest weight"
    a, b = (torch.load(root / "runs" / name / "checkpoint.pt", weights_only=True)["net"] for name in (a, b))
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1e-9)).item() for k in a)


def metrics(root, name):
    found = json.loads((root / "runs" / name / "metrics.json").read_text())
    return [
        found["val_images"],
        *found["boundary_miou"],
        *found["non_boundary_miou"],
        *(v for v in found["iou"].values() if v is not None),
    ]


def test_torchrun(root):
    status, out, err = torchrun(**arguments(root, "two"))
    assert status == 0, err
    assert difference(root, "whole", "two") < 1e-5
    assert metrics(root, "two") == pytest.approx(metrics(root, "whole"), abs=A_PIXEL)
    history = [
        np.genfromtxt(root / "runs" / name / "history.csv", delimiter=",", names=True) for name in ("whole", "two")
    ]
    for column in history[0].dtype.names:
        tolerance = dict(atol=A_PIXEL) if column.startswith("val_") else dict(rtol=1e-4)
        assert np.allclose(*(rows[column] for rows in history), equal_nan=True, **tolerance), column
    assert json.loads((root / "runs" / "two" / "config.json").read_text())["config"]["devices"] == 2
    assert out.count("two: mIoU") == 1 and err.count("| 0/4 [") == 1 # summary and progress of one process


def test_a_run_folder_that_the_first_machine_alone_sees(root):
    miou = json.loads((root / "runs" / "apart" / "metrics.json").read_text())["miou"]
    assert [float((root / f"apart-{rank}.txt").read_text()) for rank in (0, 1)] == [miou, miou]
    assert not list((root / "elsewhere").rglob("metrics.json"))


@pytest.mark.parametrize("name", ["one-two", "two-one"])
def test_resumed_on_another_number_of_processes(root, name):
    assert difference(root, "whole", name) < 1e-5
    assert metrics(root, name) == pytest.approx(metrics(root, "whole"), abs=A_PIXEL)
    assert (
        json.loads((root / "runs" / name / "metrics.json").read_text())["cost"]["steps_timed"] == 2
    )  # of 4: it went on, and did not begin again


@pytest.mark.parametrize("loss", LOSSES)
def test_other_losses(root, loss):
    assert difference(root, f"{loss}-1", f"{loss}-2") < 1e-5


def test_mean_of_means_would_differ(root):
    assert difference(root, "whole", "naive") > 1e-3


def test_what_one_process_cannot_read_stops_both(root):
    assert [(root / f"told-{rank}.txt").read_text() for rank in (0, 1)] == ["spoilt here True", "spoilt here False"]
    assert not (root / "runs" / "spoilt").exists()


def test_bad_input_is_told_once(root):
    told = "".join((root / f"stderr-{rank}.txt").read_text() for rank in (0, 1))
    [line] = [line for line in told.splitlines() if line.startswith("semeda-train: ")]
    assert "train/0001.png cannot be decoded" in line
    assert not (root / "broken" / "runs").exists()


@pytest.mark.parametrize("rank, lines", [("0", 1), ("1", 0)])
def test_before_the_processes_know_of_each_other_one_tells(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert main(["--loss", "sedema"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


TORCH = dict(TORCHELASTIC_RUN_ID="x", WORLD_SIZE="8", LOCAL_WORLD_SIZE="4")
SLURM = dict(SLURM_NTASKS="8", SLURM_NNODES="2", SLURM_JOB_NAME="train")
STEP = SLURM | dict(SLURM_STEP_ID="0")


@pytest.mark.parametrize(
    "environment, given, expected",
    [
        (TORCH, {}, (4, 2)),
        (TORCH, dict(devices=4), (4, 2)),
        (TORCH, dict(devices=2), "devices is 2; expected 4, as torchrun started"),
        (STEP, {}, (4, 2)),
        (STEP, dict(num_nodes=1), "num_nodes is 1; expected 2, as srun started"),
        (STEP | dict(SLURM_JOB_NAME="bash"), {}, (1, 1)),
        (SLURM, {}, (1, 1)),
        (SLURM, dict(devices=2), "devices is 2 in a Slurm job; expected srun or torchrun to start the processes"),
        ({}, dict(devices=3), "batch_size is 8; expected a multiple of the number of processes, 3"),
        ({}, dict(devices=2, num_nodes=2), (2, 2)),
        (TORCH | dict(LT_STRATEGY="fsdp"), {}, "strategy is 'fsdp'; choose from auto"),
        ({}, dict(strategy="fsdp"), "strategy is 'fsdp'; choose from auto, ddp, ddp_find_unused_parameters_true"),
    ],
)
def test_processes_that_were_started(monkeypatch, environment, given, expected):
    monkeypatch.delattr("sys.ps1", raising=False) # of a shell that an earlier test of this process has begun
    for name, value in environment.items(): monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        config = resolve(**given)[0]
        assert (config.devices, config.num_nodes) == expected
    else:
        with pytest.raises(InputError, match=expected): resolve(**given)


def test_a_process_ends_with_the_one_that_started_it(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("SEMEDA_MAIN_PROCESS", str(os.getppid() + 1)) # as if that one had ended
    ended = threading.Event()
    monkeypatch.setattr("os._exit", lambda status: ended.set())
    end_with_main_process(seconds=.01)
    assert ended.wait(5)


def test_a_notebook_is_one_process(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with pytest.raises(InputError, match="devices is 2 in a notebook.*torchrun --nproc-per-node 2"):
        train_run(None, devices=2, runs=str(tmp_path))


@pytest.mark.parametrize("batch_norm", ["trained", "frozen"])
@pytest.mark.parametrize(
    "make",
    [
        lambda kind: DeepLabV2(3, "resnet18", 8, 2, kind),
        lambda kind: build_network("torchvision.lraspp_mobilenet_v3_large", 3, batch_norm=kind),
    ],
    ids=["deeplab", "lraspp"],
)
def test_batch_statistics_of_all_processes(make, batch_norm):
    net = make(batch_norm)
    kinds = lambda: {name: type(m) for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    before, keys = kinds(), list(net.state_dict())
    sync_batch_norm(net, "cpu")
    assert kinds() == before
    sync_batch_norm(net)
    trunk = getattr(net, "trunk", "backbone.")
    assert all(
        (kind is nn.SyncBatchNorm) == (batch_norm == "trained" or not name.startswith(trunk))
        for name, kind in kinds().items()
    )
    assert list(net.state_dict()) == keys and len(before) == len(kinds())
    if batch_norm == "frozen":
        assert not any(
            m.training for name, m in net.train().named_modules() if name.startswith(trunk) and name in before
        )


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
