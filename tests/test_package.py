import ast
import json
import re
import runpy
import sys
import tomllib
import zipfile
from configparser import ConfigParser

import pytest

from tests.conftest import ROOT, run

HEAVY = (
    "IPython",
    "jupyter_core",
    "matplotlib",
    "torchvision",
    "lightning_fabric",
    "torchmetrics",
    "PIL",
    "scipy",
    "tqdm",
    "safetensors",
)
SLIM = ("markdown", "core", "edges", "edge_net", "semeda_term", "losses", "edge_iou")
QUICK = ("trainer", "predict", "study.run") # commands that check their arguments before they import for seconds
SLOW = ("torchvision", "lightning_fabric", "torchmetrics", "matplotlib", "scipy")

# a room imports only rooms before it
ROOMS = """
markdown core loss_inputs edges edge_net reading splits edge_net_files frozen_edge_net
semeda_term losses edge_iou rivals boundary_losses loss_processes loss_records loss_registry
crops scenes torchvision_data data
deeplab checkpoints networks trained sieve segment export predict
counts intervals structure boundary_iou metrics
launchers loggers config settings run optimise run_setup trainer
masks report evaluation evaluate
pictures curves plots explorer widgets
study.settings study.plan study.collect study.results study.tables study.claims study.run study.groups study.gains
""".split()


# imports modules one after the other and tells which heavy ones have come with each
IMPORTS = """
import importlib, json, sys
modules, heavy = map(json.loads, sys.argv[1:])
for name in modules:
    importlib.import_module(name)
    print(json.dumps([name, [other for other in heavy if other in sys.modules]]))
"""


def test_slim_imports():
    "torch first, which imports some by itself where they are installed"
    modules = ["torch", *(f"semeda.{room}" for room in SLIM)]
    modules += [f"semeda.{room}" for room in QUICK]
    done = run(sys.executable, "-c", IMPORTS, json.dumps(modules), json.dumps(HEAVY))
    assert done.returncode == 0, done.stderr
    (_, alone), *found = map(json.loads, done.stdout.splitlines())
    assert [name for name, _ in found] == modules[1:]
    for name, heavy in found:
        unwanted = SLOW if name.removeprefix("semeda.") in QUICK else HEAVY
        more = (set(heavy) - set(alone)) & set(unwanted)
        assert not more, f"{name} imports {sorted(more)}"


def rooms_used(file):
    "Rooms that a module imports anywhere"
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("semeda.") for alias in node.names if alias.name.startswith("semeda."))
        if isinstance(node, ast.ImportFrom):
            base = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            if name == "semeda":
                yield from (alias.name for alias in node.names if alias.name in ROOMS)
            elif name.startswith("semeda."):
                yield name.removeprefix("semeda.")


def test_rooms_import_only_rooms_above():
    for file in sorted((ROOT / "semeda").rglob("*.py")):
        room = ".".join(file.relative_to(ROOT / "semeda").with_suffix("").parts)
        if file.stem.startswith("_"):
            continue
        assert room in ROOMS, f"{room} has no place in the order of rooms"
        above = ROOMS[:ROOMS.index(room)]
        assert set(rooms_used(file)) <= set(above), f"{room} imports {sorted(set(rooms_used(file)) - set(above))}"


def test_wheel(tmp_path):
    done = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("semeda-*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        [meta] = [n for n in names if n.endswith("METADATA")]
        metadata = z.read(meta).decode()
    assert {"semeda/losses.py", "semeda/trainer.py"} <= set(names)
    assert not any(n.startswith(("nbs/", "tests/")) for n in names)
    needs = {
        re.split(r"[<>=~]", line[15:])[0].strip()
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini")
    assert needs == {re.split(r"[<>=~]", r)[0] for r in cfg["DEFAULT"]["requirements"].split()}
    assert not needs & {"jupyterlab", "matplotlib", "nbdev", "papermill"}


def test_nothing_is_said_twice():
    import semeda
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini")
    assert semeda.__version__ == cfg["DEFAULT"]["version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project.keys() == {"name", "dynamic", "urls"}, "the rest stands in settings.ini"
    urls = {"Homepage": cfg["DEFAULT"]["doc_url"], "Repository": cfg["DEFAULT"]["git_url"]}
    assert (project["name"], project["urls"]) == (cfg["DEFAULT"]["lib_name"], urls)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {semeda.__version__}\n" in citation and f"license: {cfg['DEFAULT']['license']}" in citation


@pytest.mark.filterwarnings("ignore:'semeda.trainer' found in sys.modules")
def test_command_line_is_there(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["semeda-train", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("semeda.trainer", run_name="__main__")
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "--lambdas" in shown and "--init-weights" in shown
