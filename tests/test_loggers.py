"""A run in TensorBoard and Weights & Biases, each with its real library and without a network."""
import pytest

from semeda.core import InputError
from semeda.loggers import Loggers, logger_names
from semeda.trainer import Run
from tests.test_run import SMALL, few_scenes, train_run  # noqa: F401, a fixture

WHY = "is not installed: pip install 'semeda[loggers]'"


def figure():
    from matplotlib.figure import Figure
    drawn = Figure(figsize=(1, 1))
    drawn.add_subplot().plot([0, 1])
    return drawn


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason=f"tensorboard {WHY}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = train_run(None, **SMALL, loss="ppce", runs=str(tmp_path), logger="csv,tensorboard")
    run.loggers = Loggers(["tensorboard"], run.folder, {})
    run.log_figure("line", figure())
    run.close()
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("val_miou")[-1].value == pytest.approx(run.metrics["miou"])
    assert events.Scalars("final_val_miou")[0].value == pytest.approx(run.metrics["miou"])
    assert events.Tags()["images"] == ["line"]


def test_tensorboard_has_each_step_once_after_a_stop(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason=f"tensorboard {WHY}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    given, log = SMALL | dict(loss="ppce", runs=str(tmp_path), logger="csv,tensorboard"), Loggers.log
    def stopped(self, values, step):
        log(self, values, step)
        if step == 3: # after the checkpoint of step 2
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loggers, "log", stopped)
        train_run(None, **given)
    run = train_run(None, **given, resume=True)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason=f"wandb {WHY}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = Run(None, **SMALL, loss="ppce", runs=str(tmp_path), logger="wandb")
    run.prepare()
    run.fit()
    run.evaluate()
    run.log_figure("line", figure())
    run.close()
    wandb.teardown()  # its own process writes for a moment after the run is closed
    [kept] = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    assert b"val_miou" in kept.read_bytes() and b"final_val_miou" in kept.read_bytes()
    assert len(list(kept.parent.glob("files/media/images/line_*.png"))) == 1


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="logger wandb needs wandb; expected pip install 'semeda\\[loggers\\]'"):
        logger_names("wandb")
