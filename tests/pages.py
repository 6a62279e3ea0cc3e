"""The pages of the documentation site as nbdev prepares them for Quarto, and what is wrong with them."""
import ast
import functools
import json
import os
import re
import warnings
from html import unescape
from pathlib import Path

import mistune
import nbdev.config
import yaml
from fastcore.nbio import read_nb
from nbdev.config import nbpath2html
from nbdev.processors import FilterDefaults

from tests.refresh import fingerprint

nbdev.config._load_toml = functools.lru_cache(nbdev.config._load_toml) # else the settings are read for every cell
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
PROGRESS = re.compile(r"\d%\|| ?it/s\b|\bs/it\b|\r(?!\n)")
ESCAPE = re.compile(r"\x1b\[")
SHOWING = {"print", "display", "show", "Markdown", "HTML", "Image"}
FIGURE = re.compile(r"^#\| fig-(alt|cap):", re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^)\s]+)[^)]*\)")


def pages(root: Path = NOTEBOOKS) -> list[Path]:
    "Every notebook that _quarto.yml renders"
    site = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    found = [path for pattern in site["project"]["render"] for path in sorted(root.glob(pattern))]
    return [path for path in dict.fromkeys(found) if path.suffix == ".ipynb"]


@functools.lru_cache(maxsize=None)
def processed(path: Path):
    "A notebook after nbdev's own processing, and the first lines of what that warned of"
    notebook = read_nb(path)
    before = os.environ.get("IN_TEST")
    os.environ["IN_TEST"] = "1"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            FilterDefaults()(notebook)
    finally:
        os.environ.pop("IN_TEST")
        if before is not None:
            os.environ["IN_TEST"] = before
    return notebook, [str(warning.message) for warning in caught]


def raised(path: Path) -> list[str]:
    "What a cell raised, or what nbdev warned of"
    try:
        caught = processed(path)[1]
    except Exception as error:  # whatever a cell raises
        last = str(error).strip().splitlines()
        return [f"nbdev cannot process the page: {last[0]} ... {last[-1]}"]
    mixed = [message for message in caught if message.startswith("Found cells containing imports")]
    return [f"a cell mixes imports and other code: {message.splitlines()[2]}" for message in mixed]


def collisions(paths: list[Path]) -> list[str]:
    "Notebooks whose pages have one name: nbdev leaves the number out"
    names = {}
    for path in paths:
        names.setdefault(nbpath2html(path), []).append(path.name)
    return [f"{' and '.join(names[page])} are one page" for page in names if len(names[page]) > 1]


def lost_words(path: Path) -> list[str]:
    "Text of the first cell that is not on the page: front matter swallows it"
    text = next((cell.source for cell in read_nb(path).cells if cell.cell_type == "markdown"), "")
    body = re.sub(r"^(# .*|> .*)$", "", text, flags=re.MULTILINE)
    page = " ".join(cell.source for cell in processed(path)[0].cells if cell.cell_type == "markdown")
    lost = [word for word in re.findall(r"[A-Za-z]{4,}", body) if word not in page]
    return [f"the introduction is not on the page: {' '.join(lost[:6])} ..."] if lost else []


def _name(call: ast.Call) -> str:
    "The name of what is called"
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _shows(statement: ast.stmt) -> bool:
    "Whether a statement prints or displays in any case: a call below an `if` may not run"
    if isinstance(statement, (ast.If, ast.FunctionDef, ast.ClassDef, ast.Try)):
        return False
    if isinstance(statement, (ast.For, ast.With)):
        return any(_shows(inner) for inner in statement.body)
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Call) and _name(value) in SHOWING


def expects_output(source: str) -> bool:
    "Whether a cell's code displays something: a figure, a print, or a value on its last line"
    try:
        body = ast.parse(re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.MULTILINE)).body
    except SyntaxError:
        return False
    if not body:
        return False
    last = body[-1]
    if FIGURE.search(source) and not isinstance(last, ast.If):
        return True
    is_value = isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Constant, ast.Await))
    return any(_shows(statement) for statement in body) or (is_value and not source.rstrip().endswith(";"))


def _visible(cell) -> bool:
    "Whether a code cell stands on the page with its output"
    off = {"hide", "export", "exports", "exporti", "default_exp"}
    return not cell.directives.keys() & off and cell.directives.get("output") != "false"


def output_text(output) -> str:
    "All that an output says in letters"
    data = output.get("data", {})
    texts = [data[kind] for kind in data if kind.startswith("text/")] + [output.get("text", "")]
    return "\n".join("".join(text) for text in texts)


def bad_outputs(path: Path) -> list[str]:
    "Results that are missing, progress bars, terminal escapes, errors, and pictures without words"
    found = []
    for cell in read_nb(path).cells:
        if cell.cell_type != "code" or not _visible(cell):
            continue
        code = [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
        where = code[0][:60] if code else "an empty cell"
        text = "\n".join(output_text(output) for output in cell.outputs)
        if not cell.outputs and expects_output(cell.source):
            found.append(f"a result is missing below: {where}")
        if PROGRESS.search(text):
            found.append(f"a progress bar in the output of: {where}")
        if ESCAPE.search(text):
            found.append(f"a terminal escape in the output of: {where}")
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"an error in the output of: {where}")
        if any("image/png" in output.get("data", {}) for output in cell.outputs) and "#| fig-alt:" not in cell.source:
            found.append(f"a picture without `#| fig-alt:` in the output of: {where}")
    return found


def texts(path: Path) -> list[str]:
    "The Markdown of a processed page: its prose, and what its cells show"
    found = []
    for cell in processed(path)[0].cells:
        if cell.cell_type == "markdown":
            found.append(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                found.append("".join(output["data"]["text/markdown"]))
    return [re.sub(r"^(```+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL) for text in found]


def identifier(heading: str) -> str:
    "The anchor that pandoc gives a heading"
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`\\]", r"\1", heading)
    kept = re.sub(r"[^\w\s.-]", "", plain).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", kept)) or "section"


@functools.lru_cache(maxsize=None)
def anchors(path: Path) -> set[str]:
    "All anchors of a processed page"
    found = set()
    for text in texts(path):
        found |= set(re.findall(r"\{#([\w.-]+)", text))
        found |= {identifier(heading) for heading in re.findall(r"^#+ +(.*?) *(?:\{[^}]*\})?$", text, re.MULTILINE)}
    return found


@functools.lru_cache(maxsize=None)
def addresses(site: tuple[Path, ...]) -> dict[Path, Path]:
    "The notebook behind each page's address"
    return {nbpath2html(page.resolve()): page.resolve() for page in site}


def _leads(path: Path, target: str, known: dict[Path, Path]) -> bool:
    "Whether a link within the site leads to a page, an anchor or a file; `known` maps a page's address to its notebook"
    file, _, anchor = target.partition("#")
    place = (path.parent / file).resolve() if file else path.resolve()
    notebook = place if place in known.values() else known.get(place)
    if notebook is None:
        return not anchor and place.suffix not in (".html", ".ipynb") and place.exists()
    return not anchor or anchor in anchors(notebook)


def dead_links(path: Path, site: list[Path]) -> list[str]:
    "Links and anchors that lead nowhere"
    known = addresses(tuple(dict.fromkeys([*site, path])))
    targets = {target for text in texts(path) for target in LINK.findall(text)}
    inner = [target for target in targets if not re.match(r"https?:|mailto:", target)]
    return [f"a dead link: {target}" for target in sorted(inner) if not _leads(path, target, known)]


def dead_entries(site: list[Path], index: dict[str, dict[str, tuple]], root: Path = NOTEBOOKS) -> list[str]:
    "Public names of nbdev's index, by module, that lead to no heading; methods are shown with their class"
    known = addresses(tuple(site))
    found = []
    for module, names in index.items():
        for name, (address, *_) in names.items():
            own = name.removeprefix(f"{module}.")
            public = "." not in own and not own.startswith("_")
            if public and not _leads(root / "index.ipynb", address, known):
                found.append(f"a dead entry in the index of names: {name} is not at {address}")
    return found


def pictures_without_words(path: Path) -> list[str]:
    "Pictures in the prose without an alternative text"
    text = "\n".join(texts(path))
    bare = re.findall(r"!\[\s*\]\([^)]*\)(?!\{[^}]*fig-alt)", text)
    bare += [tag for tag in re.findall(r"<img[^>]*>", text) if "alt=" not in tag]
    return [f"a picture without an alternative text: {picture}" for picture in bare]


def eaten_docstrings(path: Path) -> list[str]:
    "Docstrings that do not read on the page as they were written"
    found = []
    for cell in processed(path)[0].cells:
        for output in cell.get("outputs", []) if "show_doc(" in cell.source else []:
            data = output.get("data", {})
            written = "".join(data.get("text/plain", "")).removesuffix('"""').rpartition('"""')[2]
            shown = "".join(data.get("text/markdown", "")).rpartition("\n```")[2]
            html = mistune.html(shown)
            read = unescape(re.sub(r"<(?:/?(?:p|em|strong|code|a|ul|li|ol|pre|h\d)\b[^>]*)>", "", html))
            if "$" not in written and _letters(read) != _letters(written):
                found.append(f"a docstring is not shown as it was written: {written[:60]}")
    return found


def _letters(text: str) -> str:
    "A text without spaces, backticks and list marks"
    return re.sub(r"[\s`\\]|^[-\d.]+ ", "", text, flags=re.MULTILINE)


def stale(path: Path) -> list[str]:
    "Outputs that were not made by the code above them"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    recorded = notebook["metadata"].get("semeda", {}).get("executed")
    if recorded == fingerprint(notebook):
        return []
    changed = "code or outputs have changed since the page was executed" if recorded else "the page was never executed"
    return [f"{changed}: python -m tests.refresh {path.name}"]


def faults(path: Path, site: list[Path] | tuple = ()) -> list[str]:
    "All that is wrong with one page"
    found = raised(path) + bad_outputs(path) + stale(path)
    if any(fault.startswith("nbdev cannot") for fault in found):
        return found
    found += lost_words(path) + pictures_without_words(path) + eaten_docstrings(path)
    return found + dead_links(path, list(site))
