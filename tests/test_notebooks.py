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
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from semeda.config import Config, resolve
from semeda.core import InputError
from semeda.settings import notebook_parameters
from semeda.trainer import train
from tests.conftest import ROOT, run, snapshot
from tests.pages import pages
from tests.readme import readme
from tests.refresh import parameters_cell

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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_hold_no_error_and_no_path_of_this_machine(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    outputs = [o for c in code for o in c["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    text = json.dumps(outputs)
    assert "/home/" not in text and str(ROOT.parent) + "/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_no_table_is_empty(path):
    texts = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
    for cell in cells(path):
        shown = [o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]
        texts += ["".join(data["text/markdown"]) for data in shown]
    for text in texts:
        lines = [*text.splitlines(), ""]
        for line, below in zip(lines, lines[1:]):
            if re.fullmatch(r"\|[-:| ]*-[-:| ]*\|", line):
                assert below.startswith("|"), f"{line} has no row below it"


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
                assert re.match("https?://", target) or (path.parent / target.split("#")[0]).exists(), target


def test_site_lists_every_notebook():
    site = yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text())
    listed = {str(path.relative_to(ROOT)) for path in pages()}
    assert listed == set(NAMES)
    contents = json.dumps(site["website"]["sidebar"]["contents"])
    assert all(name.removeprefix("nbs/") in contents for name in NAMES)
    assert site["project"]["render"][0] == "index.ipynb"


def test_export_leaves_no_difference(tmp_path):
    copy = tmp_path / "project"
    other = (".venv", "runs", ".git", "__pycache__", ".pytest_cache", ".hypothesis", "results")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*other))
    done = run(BIN / "nbdev-export", cwd=copy, env={"PYTHONPATH": str(copy)})
    assert done.returncode == 0, done.stderr
    names = [p.name for p in (ROOT / "semeda").iterdir() if p.is_file()]
    match, differ, missing = filecmp.cmpfiles(ROOT / "semeda", copy / "semeda", names, shallow=False)
    exported = sorted(p.name for p in (copy / "semeda").iterdir() if p.is_file())
    assert not differ and not missing and exported == sorted(names)


def test_clean_leaves_no_difference_and_keeps_the_tag(tmp_path):
    copy = tmp_path / "nbs"
    shutil.copytree(ROOT / "nbs", copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = run(BIN / "nbdev-clean", "--fname", copy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in NOTEBOOKS:
        cleaned = copy / path.relative_to(ROOT / "nbs")
        assert cells(cleaned) == cells(path), f"run: nbdev-clean --fname {path.relative_to(ROOT)}"
    assert tagged(copy / "train.ipynb").startswith("# Parameters")


def test_parameters_cell_mirrors_the_config():
    source = tagged(ROOT / "nbs" / "train.ipynb")
    assert source == parameters_cell(), "run: python -m tests.refresh --parameters --record nbs/train.ipynb"
    cell = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(Config)}
    assert cell == defaults and list(cell) == list(defaults)


def test_readme_is_the_index():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == readme(), "run: make readme"
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert len(links) > 20 and all((ROOT / link).is_file() for link in links), links
    assert text.count("\n") < 120 and "make demo" in text and "make test" in text


def test_readme_example_runs(tmp_path, capsys, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), dict(__name__="__main__"))
    steps = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    assert len(steps) == 10 and set(steps[0]) == {"ppce", "lovasz", "trimap_lovasz"}
    assert steps[-1]["ppce"] < steps[0]["ppce"]


def papermill(*args, cwd, pipe=False):
    command = [str(BIN / "papermill"), *map(str, args)]
    if pipe:
        command = ["bash", "-o", "pipefail", "-c", " ".join(command) + " | cat"]
    return run(*command, cwd=cwd)


def test_a_row_decides_about_what_the_notebooks_defaults_set():
    source = tagged(ROOT / "nbs" / "train.ipynb")
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    injected = dict(row="table1_01", name="x")
    cells = ["import os", source, "# Parameters\nrow = 'table1_01'\nname = 'x'"]
    config, _ = resolve(**notebook_parameters(values | injected | dict(In=cells)))
    assert (config.loss, list(config.lambdas), config.name) == ("ppce", [1., 0., 0.], "x")


def test_papermill_from_any_folder_without_an_output_path(tmp_path):
    loggers = "csv,tensorboard" if find_spec("tensorboard") else "csv"
    given = ["-p", "loss", "semeda", "-p", "logger", loggers, *QUICK]
    done = papermill(ROOT / "nbs" / "train.ipynb", *given, cwd=tmp_path, pipe=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout)
    assert not any(o["output_type"] == "error" for c in printed["cells"] for o in c.get("outputs", []))
    folder = tmp_path / "runs" / "scenes-semeda-s0"
    drawn = ("crops", "history", "overlays", "trimap")
    figures = {f"figures/{name}.{ext}" for name in drawn for ext in ("png", "json")}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {"config.json", "metrics.json", "history.csv", "checkpoint.pt"} | figures
    if "tensorboard" in loggers:
        check_events(folder / "tensorboard")
    small = dict(iterations=2, batch_size=2, val_every=0, runs=str(tmp_path / "runs"))
    train(progress=None, loss="ppce", name="<b>other", **small)
    both = f"{tmp_path}/runs/<b>other,{tmp_path}/runs/scenes-semeda-s0"
    compare = ROOT / "nbs" / "compare.ipynb"
    compared = papermill(compare, tmp_path / "compared.ipynb", "-p", "run_folders", both, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr[-2000:]
    check_comparison(tmp_path / "runs", json.loads((tmp_path / "compared.ipynb").read_text()))


def check_events(folder):
    "The notebook's figures and the run's scores in TensorBoard"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == ["history", "overlays", "trimap"]
    assert [event.step for event in events.Scalars("loss")] == [2] and len(events.Scalars("final_val_miou")) == 1


def check_comparison(runs, notebook):
    "Scores, a title with people's names, and figures that are not clipped"
    table = (runs / "comparison.md").read_text()
    for name in ("<b>other", "scenes-semeda-s0"):
        miou = json.loads((runs / name / "metrics.json").read_text())["miou"]
        assert f"{100 * miou:.1f}" in table
    assert "difference" in table and "<b>" not in table
    data = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    html = [found["text/html"] for found in data if "text/html" in found]
    assert "PPCE and SEMEDA on scenes" in "".join(html[0])
    for name in ("losses", "trimap", "differences", "overlays"):
        with Image.open(runs / f"{name}.png") as file:
            edges = np.asarray(file.convert("L"))
        rims = (edges[0], edges[-1], edges[:, 0], edges[:, -1])
        assert all((rim == 255).all() for rim in rims), f"{name}.png is clipped"


def compare_cells(monkeypatch, last, **parameters):
    "The cells of the comparison up to the one that holds a text, on two runs of odd names; what they show"
    config, shown = resolve()[0], []
    runs = {name: SimpleNamespace(config=config, train_data=[], record={}) for name in ("<img src=x>", "<script>")}
    monkeypatch.setattr("semeda.plots.run_paths", lambda _: [Path(name) for name in runs])
    monkeypatch.setattr("semeda.plots.predict_runs", lambda *_, **__: (runs, [], dict.fromkeys(runs, [])))
    monkeypatch.setattr("IPython.display.display", lambda found: shown.append(found.data))
    space = run_compare(last, **parameters)
    return "".join([*shown, space["_"].data])


def run_compare(last, **parameters):
    "Names of the comparison after the cell that holds a text; `_` is what it shows"
    codes = ["".join(cell["source"]) for cell in cells(ROOT / "nbs" / "compare.ipynb") if cell["cell_type"] == "code"]
    injected = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    space = dict(In=[codes[0], injected])
    for code in (codes[0], injected, *codes[1:]):
        exec(code, space)
        if last in code:
            return space | dict(_=eval(code.splitlines()[-1], space))


def test_names_in_the_comparison_are_escaped(monkeypatch):
    text = compare_cells(monkeypatch, "settings = [", run_folders="a,b", images=3)
    assert "<img" not in text and "<script" not in text and text.count("&lt;script&gt;") >= 2


@pytest.mark.parametrize("images, words", [
    (9999, "images is 9999; expected at most 50"), (0, "images is 0; expected at least 1"),
    ("abc", "images is 'abc'; expected a number")])
def test_numbers_of_images_that_the_comparison_refuses(monkeypatch, images, words):
    with pytest.raises(InputError, match=words):
        compare_cells(monkeypatch, "settings = [", run_folders="a,b", images=images)


@pytest.mark.parametrize("first, second", [(3, 12), (12, 3)])
def test_runs_of_unlike_width_and_void_are_scored_alike(camvid_folder, tmp_path, monkeypatch, first, second):
    "At the first run's, so that scores and differences are of one kind"
    monkeypatch.setattr("IPython.display.display", lambda found: None)
    small = dict(dataset="camvid", data_root=str(camvid_folder), image_size="", iterations=2, batch_size=2, crop=16,
                 val_every=0, loss="ppce", runs=str(tmp_path), workers=0)
    one = train(progress=None, name="one", max_width=first, void="ignore", **small)
    train(progress=None, name="two", max_width=second, void="label", seed=1, **small)
    space = run_compare("write_json(out", run_folders=f"{tmp_path}/one,{tmp_path}/two")
    scores, differences = space["scores"], space["differences"]
    (baseline, ours), (other, theirs) = scores.items()
    assert [len(found["boundary"]) for found in scores.values()] == [first, first]
    assert float(ours["miou"]) == pytest.approx(one.metrics["miou"], abs=1e-6)
    assert ours["boundary"].tolist() == pytest.approx(one.metrics["boundary_miou"], abs=1e-6)
    assert float(differences[other]["miou"][0]) == pytest.approx(float(theirs["miou"] - ours["miou"]), abs=1e-6)
    assert "width 2" in space["_"].data and ("width 5" in space["_"].data) == (first >= 5)


def test_papermill_ends_with_the_line(tmp_path):
    before = snapshot(tmp_path)
    done = papermill(ROOT / "nbs" / "train.ipynb", "-p", "learning_rate", "1", cwd=tmp_path, pipe=True)
    assert done.returncode != 0
    words = "InputError: unknown parameter 'learning_rate'; choose from dataset"
    assert words in done.stderr.strip().splitlines()[-1]
    assert snapshot(tmp_path) == before


def test_make_docs_says_how_to_get_quarto(tmp_path):
    if shutil.which("quarto"):
        pytest.skip("Quarto is installed")
    (tmp_path / ".semeda-installed").touch()
    os.utime(tmp_path / ".semeda-installed", (2**32, 2**32))
    done = subprocess.run(["make", "docs", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "https://quarto.org" in done.stderr
