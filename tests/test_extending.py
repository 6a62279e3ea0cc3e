import csv
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from semeda import evaluate, trainer
from semeda.data import DATASETS
from semeda.loss_registry import LOSSES, loss_label
from semeda.metrics import METRICS
from semeda.networks import NETWORKS, network_label
from tests.conftest import ROOT
from tests.conftest import run as run_process

SHORT_NAMES = """
from semeda.data import DATASETS, DatasetRecord
from semeda.loss_registry import LOSSES, LossRecord
from semeda.networks import NETWORKS, NetworkRecord
LOSSES.register("mine", LossRecord("mine", MyLoss, "my loss"))
DATASETS.register("my_photos", DatasetRecord("my_photos", my_photos, "camvid_cpu", "photos of mine"))
NETWORKS.register("my_net", NetworkRecord("my_net", MyNet, "my network"))
"""
SMALL = ["--iterations=2", "--batch-size=2", "--crop=16", "--val-every=1", "--log-every=1", "--max-width=2",
         "--image-size=", "--device=cpu"]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "CONTRIBUTING's examples as a module outside of the package, photos for its dataset, and a place for runs"
    folder = tmp_path_factory.mktemp("house")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 4
    (folder / "my_house.py").write_text("\n".join([*examples, SHORT_NAMES]))
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        (folder / split).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(folder / split / f"{i}.jpg")
            mask = rng.choice([0, 1, 2, 255], (3, 4)).repeat(6, 0).repeat(6, 1)
            Image.fromarray(mask.astype(np.uint8)).save(folder / split / f"{i}.png")
    before = [(registry, dict(registry)) for registry in (LOSSES, DATASETS, NETWORKS, METRICS)]
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("my_house", None)
    for registry, records in before:
        registry.clear()
        registry.update(records)


def train(house, name, *args):
    "A tiny run of the command line"
    where = [f"--data-root={house}", f"--runs={house / 'runs'}", f"--name={name}", "--plugins=my_house"]
    assert trainer.main([*where, *SMALL, *args]) == 0
    return house / "runs" / name


@pytest.fixture(scope="module")
def runs(house):
    "A run by dotted names, and one by registered names"
    dotted = train(house, "dotted", *(f"--{what}=my_house:{name}" for what, name in (
        ("loss", "MyLoss"), ("dataset", "my_photos"), ("network", "MyNet"))))
    short = train(house, "short", "--loss=mine", "--dataset=my_photos", "--network=my_net")
    return dotted, short


def test_runs_have_what_is_not_of_the_package(runs):
    "history.csv, metrics.json and config.json"
    for run in runs:
        rows = list(csv.DictReader((run / "history.csv").open()))
        metrics = json.loads((run / "metrics.json").read_text())
        assert len(rows) == 2 and float(rows[-1]["val_accuracy"]) == pytest.approx(metrics["accuracy"])
        assert float(rows[-1]["loss"]) > 0 and 0 < metrics["accuracy"] <= 1
        assert set(metrics["iou"]) == {"sky", "road", "tree"}
    histories = [[row["loss"] for row in csv.DictReader((run / "history.csv").open())] for run in runs]
    assert histories[0] == histories[1], "a name is a name"
    config = json.loads((runs[0] / "config.json").read_text())["config"]
    named = [config[name] for name in ("loss", "dataset", "network")]
    assert named == ["my_house:MyLoss", "my_house:my_photos", "my_house:MyNet"]


def test_help_and_choices_name_them(house, runs, capsys):
    with pytest.raises(SystemExit):
        trainer.main(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", shown) for name in ("mine", "my_photos", "my_net"))
    for parameter, name in (("loss", "mine"), ("dataset", "my_photos"), ("network", "my_net")):
        assert trainer.main([f"--{parameter}=nothing"]) == 2
        message = capsys.readouterr().err
        assert name in message and message.count("\n") == 1


def test_reports_and_tables_show_them(house, runs, capsys):
    for run in runs:
        assert evaluate.main(["--run", str(run), "--out", str(run / "evaluation"), "--plugin", "my_house"]) == 0
        metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
        assert metrics["accuracy"] == pytest.approx(json.loads((run / "metrics.json").read_text())["accuracy"])
        assert "pixel accuracy" in (run / "evaluation" / "report.md").read_text()
        with (run / "evaluation" / "images.csv").open() as file:
            shares = [float(row["accuracy"]) for row in csv.DictReader(file)]
        assert len(shares) == 2 and min(shares) <= metrics["accuracy"] <= max(shares)
    assert loss_label("my_house:MyLoss") == "my loss" == loss_label("mine")
    assert network_label("my_net") == "my network"
    compared = compare(runs, capsys, "--plugin", "my_house")
    assert "mIoU" in compared and re.search(r"^\| pixel accuracy \(%\) +\| +[+-]\d", compared, re.MULTILINE)


def compare(runs, capsys, *args):
    "What semeda-evaluate compare prints in a process that has not imported anything of the user's own"
    capsys.readouterr()
    METRICS.pop("accuracy")
    for registry, name in ((LOSSES, "mine"), (DATASETS, "my_photos"), (NETWORKS, "my_net")):
        registry.pop(name)
    sys.modules.pop("my_house")
    assert evaluate.main(["compare", *(str(run / "evaluation") for run in runs), *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("argument, words", [
    ("--loss=my_house:Nothing", "module my_house has no Nothing"),
    ("--dataset=my_house:my_photo", "module my_house has no my_photo"),
    ("--network=my_house:my_photos", "my_house:my_photos"),
    ("--plugins=my_hut", "module 'my_hut' cannot be imported"),
])
def test_what_is_wrong_is_told_in_one_line(house, argument, words, capsys):
    args = [f"--data-root={house}", f"--runs={house / 'wrong'}", "--dataset=my_house:my_photos", *SMALL, argument]
    assert trainer.main(args) == 2
    message = capsys.readouterr().err
    assert message.startswith("semeda-train: ") and words in message and message.count("\n") == 1
    assert not (house / "wrong").exists()


def test_a_module_of_the_working_directory_is_found_by_a_command(tmp_path):
    "The search path of an installed command begins with its own folder, not with the working directory"
    (tmp_path / "my_loss.py").write_text("import torch\n\n\nclass Mine(torch.nn.CrossEntropyLoss):\n    pass\n")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "semeda-train"
    command.write_text("import sys\nfrom semeda.trainer import main\nsys.exit(main())\n")
    line = [sys.executable, command, "--loss=my_loss:Mine", "--iterations=1", "--network=none"]
    done = run_process(*line, cwd=tmp_path, env=dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 2 and "network is 'none'" in done.stderr and "my_loss" not in done.stderr
    done = run_process(*line[:2], "--loss=no_loss:Mine", "--iterations=1", cwd=tmp_path, env=dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 2 and "'no_loss:Mine' cannot be imported: ModuleNotFoundError" in done.stderr
