"""The notebooks as files, as documentation, and as papermill runs them."""
import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from semeda.trainer import Config
from tests.conftest import ROOT, run, snapshot
from tests.pages import pages
from tests.readme import readme

NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
NAMES = [str(p.relative_to(ROOT)) for p in NOTEBOOKS]
BIN = Path(sys.executable).parent
QUICK = ["-p", "iterations", "2", "-p", "batch_size", "2", "-p", "edge_steps", "5", "-p", "val_every", "0"]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def tagged(path):
    [cell] = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_form(path):
    for cell in cells(path):
        source = cell["source"]
        assert isinstance(source, list) and all(line.endswith("\n") for line in source[:-1])
        assert set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert "parameters" in cell["metadata"].get("tags", []) or len(source) <= 60, source[:3]
    assert "".join(cells(path)[0]["source"]).startswith("# ")
    assert path.stat().st_size < 900_000


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.name != "index.ipynb"], ids=[n for n in NAMES if "index" not in n]
)
def test_outputs_are_kept(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    outputs = [o for c in code for o in c["outputs"]]
    assert outputs and not any(o["output_type"] == "error" for o in outputs)
    text = json.dumps(outputs)
    assert "/home/" not in text and str(ROOT.parent) + "/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_no_table_is_empty(path):
    texts = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
    texts += [
        "".join(o["data"]["text/markdown"])
        for cell in cells(path)
        if cell["cell_type"] == "code"
        for o in cell["outputs"]
        if "text/markdown" in o.get("data", {})
    ]
    for text in texts:
        lines = [*text.splitlines(), ""]
        for line, below in zip(lines, lines[1:]):
            if re.fullmatch(r"\|[-:| ]*-[-:| ]*\|", line): assert below.startswith("|"), f"{line} has no row below it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_picture_has_words(path):
    for cell in cells(path):
        for line in re.findall(r"^#\| (fig-alt:.*)$", "".join(cell["source"]), re.M):
            assert len(yaml.safe_load(line)["fig-alt"]) > 20, line
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert "#| fig-alt:" in "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            assert not re.search(r"!\[\s*\]\(", "".join(cell["source"]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_links_lead_somewhere(path):
    for cell in cells(path):
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])):
                assert target.startswith("https://") or (path.parent / target.split("#")[0]).exists(), target


def test_site_lists_every_notebook():
    site = yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text())
    listed = {str(path.relative_to(ROOT)) for path in pages()}
    assert listed == set(NAMES)
    contents = json.dumps(site["website"]["sidebar"]["contents"])
    assert all(name.removeprefix("nbs/") in contents for name in NAMES)
    assert site["project"]["render"][0] == "index.ipynb"


def test_export_leaves_no_difference(tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(".venv", "runs", ".git", "__pycache__", ".pytest_cache", ".hypothesis"),
    )
    done = run(BIN / "nbdev-export", cwd=copy, env={"PYTHONPATH": str(copy)})
    assert done.returncode == 0, done.stderr
    names = [p.name for p in (ROOT / "semeda").iterdir() if p.is_file()]
    match, differ, missing = filecmp.cmpfiles(ROOT / "semeda", copy / "semeda", names, shallow=False)
    assert (
        not differ
        and not missing
        and sorted(p.name for p in (copy / "semeda").iterdir() if p.is_file()) == sorted(names)
    )


def test_clean_leaves_no_difference_and_keeps_the_tag(tmp_path):
    copy = tmp_path / "nbs"
    shutil.copytree(ROOT / "nbs", copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = run(BIN / "nbdev-clean", "--fname", copy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in NOTEBOOKS:
        assert cells(copy / path.relative_to(ROOT / "nbs")) == cells(path), (
            f"run: nbdev-clean --fname {path.relative_to(ROOT)}"
        )
    assert tagged(copy / "train.ipynb").startswith("# Parameters")


def test_parameters_cell_mirrors_the_config():
    source = tagged(ROOT / "nbs" / "train.ipynb")
    cell = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(Config)}
    assert cell == defaults and list(cell) == list(defaults)
    helps = [line.partition(" # ")[2].split(" (")[0] for line in source.splitlines()[1:]]
    assert helps == [f.metadata["help"].split(" (")[0] for f in fields(Config)]


def test_readme_is_the_index():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == readme(), "run: make readme"
    assert text.count("\n") < 120 and "make demo" in text and "make test" in text


def test_readme_example_runs(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "example.py").write_text(code)
    done = run(sys.executable, "example.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(steps) == 10 and set(steps[0]) == {"ppce", "semeda"} and steps[-1]["ppce"] < steps[0]["ppce"]


def papermill(*args, cwd, pipe=False):
    command = [str(BIN / "papermill"), *map(str, args)]
    if pipe:
        command = ["bash", "-o", "pipefail", "-c", " ".join(command) + " | cat"]
    return run(*command, cwd=cwd)


def test_papermill_from_any_folder_without_an_output_path(tmp_path):
    done = papermill(ROOT / "nbs" / "train.ipynb", "-p", "loss", "semeda", *QUICK, cwd=tmp_path, pipe=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout)
    assert not any(o["output_type"] == "error" for c in printed["cells"] for o in c.get("outputs", []))
    folder = tmp_path / "runs" / "scenes-semeda-s0"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "config.json",
        "metrics.json",
        "history.csv",
        "checkpoint.pt",
        *(f"figures/{n}.{e}" for n in ("crops", "history", "overlays", "trimap") for e in ("png", "json")),
    }
    again = papermill(
        ROOT / "nbs" / "train.ipynb",
        tmp_path / "out.ipynb",
        "-p",
        "row",
        "table1_01",
        "-p",
        "name",
        "scenes-ppce-s0",
        *QUICK,
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr[-2000:]
    config = json.loads((tmp_path / "runs" / "scenes-ppce-s0" / "config.json").read_text())["config"]
    assert (config["loss"], config["lambdas"]) == (
        "ppce",
        [1.0, 0.0, 0.0],
    )  # the row decides about what the notebook's own defaults set
    both = f"{tmp_path}/runs/scenes-ppce-s0,{tmp_path}/runs/scenes-semeda-s0"
    compared = papermill(
        ROOT / "nbs" / "compare.ipynb", tmp_path / "compared.ipynb", "-p", "run_folders", both, cwd=tmp_path
    )
    assert compared.returncode == 0, compared.stderr[-2000:]
    table = (tmp_path / "runs" / "comparison.md").read_text()
    miou = [
        100 * json.loads((tmp_path / "runs" / f"scenes-{loss}-s0" / "metrics.json").read_text())["miou"]
        for loss in ("ppce", "semeda")
    ]
    assert [f"{m:.1f}" in table for m in miou] == [True, True] and "difference" in table
    assert (tmp_path / "runs" / "overlays.png").stat().st_size > 10_000


@pytest.mark.parametrize("notebook, args, words", [
    ("train", ["-p", "loss", "sedema"], "InputError: loss is 'sedema'; choose from ppce, ubernet, ppce_edges, semeda"),
    ("train", ["-p", "learning_rate", "1"], "InputError: unknown parameter 'learning_rate'; choose from dataset"),
    ("compare", ["-p", "run_folders", "a,b"], "InputError: run folder a has no metrics.json; expected a finished run"),
])
def test_papermill_ends_with_the_line(tmp_path, notebook, args, words):
    before = snapshot(tmp_path)
    done = papermill(ROOT / "nbs" / f"{notebook}.ipynb", *args, cwd=tmp_path, pipe=True)
    assert done.returncode != 0
    assert words in done.stderr.strip().splitlines()[-1]
    assert snapshot(tmp_path) == before


def test_make_docs_says_how_to_get_quarto(tmp_path):
    if shutil.which("quarto"):
        pytest.skip("Quarto is installed")
    (tmp_path / ".semeda-installed").touch()
    os.utime(tmp_path / ".semeda-installed", (2**32, 2**32))
    done = subprocess.run(["make", "docs", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "https://quarto.org" in done.stderr
