import json
import re
import sys
import zipfile
from configparser import ConfigParser

import pytest

from tests.conftest import ROOT, run

HEAVY = ("IPython", "jupyter_core", "matplotlib", "torchvision", "lightning_fabric", "torchmetrics", "PIL", "scipy", "tqdm", "safetensors")


@pytest.mark.parametrize("module", ["semeda.losses", "semeda.edges", "semeda.edge_net"])
def test_slim_imports(module):
    code = f"import sys, json, {module}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    # torch imports some of these by itself where they are installed
    alone = run(sys.executable, "-c", code.replace(f", {module}", ", torch"))
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(alone.stdout)


def test_rooms_import_only_rooms_above():
    order = ["edges", "edge_net", "losses", "deeplab", "data", "metrics", "trainer", "plots", "evaluate", "widgets"]
    for i, room in enumerate(order):
        used = re.findall(r"from (?:semeda)?\.(\w+) import", (ROOT / "semeda" / f"{room}.py").read_text())
        assert set(used) <= set(order[:i]) and (used or i == 0), room


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
    needs = {re.split(r"[<>=~]", line[15:])[0].strip() for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line}
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini")
    assert needs == {re.split(r"[<>=~]", r)[0] for r in cfg["DEFAULT"]["requirements"].split()}
    assert not needs & {"jupyterlab", "matplotlib", "nbdev", "papermill"}


def test_nothing_is_said_twice():
    import semeda
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini")
    assert semeda.__version__ == cfg["DEFAULT"]["version"]
    assert "[project]" not in (ROOT / "pyproject.toml").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {semeda.__version__}\n" in citation and f"license: {cfg['DEFAULT']['license']}" in citation


def test_command_line_is_there():
    done = run(sys.executable, "-m", "semeda.trainer", "--help")
    assert done.returncode == 0 and "--lambdas" in done.stdout and "--init-weights" in done.stdout
