"""nbdev processes every page of the site, and each fault that once stood on a page is found."""
import json
import re

import pytest

from semeda._modidx import d as nbdev_index
from semeda._site import escaped
from tests import pages as site
from tests.refresh import fingerprint, is_of_the_page, joined, record

PAGES = site.pages()
IDS = [str(path.relative_to(site.NOTEBOOKS)) for path in PAGES]
TITLE = "# A page\n\n> What it is about.\n\nThe introduction stands here."


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_page(path):
    assert site.faults(path, PAGES) == []


def test_no_two_pages_have_one_name():
    assert site.collisions(PAGES) == []


def test_each_public_name_leads_to_its_heading():
    assert site.dead_entries(PAGES, nbdev_index["syms"]) == []


def test_each_source_is_cited_and_each_citation_has_its_source():
    text = "\n".join(part for path in PAGES for part in site.texts(path))
    cited = set(re.findall(r"(?<![\w.])@([a-z]+\d{4}[a-z]*)", text))
    listed = re.findall(r"^@\w+\{([\w-]+),", (site.NOTEBOOKS / "references.bib").read_text(), re.MULTILINE)
    assert [f"{key} is cited and not in references.bib" for key in cited - set(listed)] == []
    assert [f"{key} is in references.bib and not cited" for key in set(listed) - cited] == []
    assert len(listed) == len(set(listed))


def stream(text, name="stdout"):
    return [dict(output_type="stream", name=name, text=[text])]


def markdown(text):
    return [dict(output_type="display_data", data={"text/markdown": [text]}, metadata={})]


def picture():
    return [dict(output_type="display_data", data={"image/png": "iVBORw0KGgo="}, metadata={})]


def write_page(folder, *cells, title=TITLE):
    "A notebook of a title and code cells, each its source and its outputs"
    made = [dict(cell_type="markdown", id="title", metadata={}, source=title.splitlines(True))]
    for number, (source, outputs) in enumerate(cells):
        made.append(dict(cell_type="code", id=f"cell{number}", metadata={}, source=source.splitlines(True),
                         outputs=outputs, execution_count=None))
    path = folder / "nbs" / "20_page.ipynb"
    path.parent.mkdir(exist_ok=True)
    metadata = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    metadata["semeda"] = dict(executed=fingerprint(dict(cells=made)))
    path.write_text(json.dumps(dict(cells=made, metadata=metadata, nbformat=4, nbformat_minor=5)))
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder with this project's nbdev settings"
    (tmp_path / "pyproject.toml").write_text((site.ROOT / "pyproject.toml").read_text())
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path)
    forget()
    return tmp_path


def forget():
    "Read settings and pages again"
    site.processed.cache_clear()
    site.nbdev.config._load_toml.cache_clear()


HALF = "#| export\ndef half(x: float) -> float:\n    'Half of x'\n    return x / 2"
RESULT = [dict(output_type="execute_result", data={"text/plain": "1.5"}, metadata={}, execution_count=None)]
GOOD = [("#| export\nimport math", []), (HALF, []), ("half(3)", RESULT)]


def test_a_good_page_has_no_fault_and_shows_its_code(project):
    path = write_page(project, *GOOD)
    assert site.faults(path) == []
    cells = site.processed(path)[0].cells
    sources = [cell.source for cell in cells]
    assert "The introduction stands here." in sources[1]
    [signature] = [cell for cell in cells if "show_doc(half)" in cell.source]
    [code] = [source for source in sources if "return x / 2" in source]
    assert "#| code-fold: true" in code and sources.index(code) > sources.index(signature.source)
    assert not any("import math" in source for source in sources)


def test_folded_cells_in_a_row_are_one_fold(project):
    fold = "#| code-fold: true\n"
    cells = (f"{fold}x = 1", []), (f"{fold}y = 2", []), (f"{fold}half(y)", RESULT), (f"{fold}z = 3", [])
    shown = [cell.source for cell in site.processed(write_page(project, *GOOD, *cells))[0].cells]
    assert shown[-2] == f"{fold}x = 1\n\ny = 2\n\nhalf(y)" and shown[-1] == f"{fold}z = 3"


def test_a_link_is_not_put_into_a_link(project):
    path = write_page(project, *GOOD, ("table()", markdown("see [`edge_map`](20_page.ipynb)")))
    assert "see [`edge_map`](20_page.ipynb)" in "\n".join(site.texts(path)) and site.faults(path) == []


def test_a_picture_far_down_is_shown_at_the_top_too(project):
    figure = ("#| fig-alt: A line that falls.\nfig = draw()", picture())
    path = write_page(project, *GOOD, *[(f"x = {k}", []) for k in range(8)], figure)
    cells = site.processed(path)[0].cells
    shown = [k for k, cell in enumerate(cells) if "fig = draw()" in cell.source]
    assert shown[0] == 2 and len(shown) == 2 and cells[2].source.startswith("#| echo: false\n#| fig-alt: A line")
    assert "{#opening-picture}" in cells[shown[1] - 1].source and site.faults(path) == []


@pytest.mark.parametrize("cells, words", [
    ([*GOOD, ("x = 1 / 2", []), ("import json\nx.nowhere()", [])], "nbdev cannot process the page"),
    ([*GOOD, ("import json\ny = json.dumps(1)", [])], "mixes imports and other code"),
    ([*GOOD, ("print(half(3))", [])], "a result is missing below: print(half(3))"),
    ([*GOOD, ("half(3) + 1", [])], "a result is missing below: half(3) + 1"),
    ([*GOOD, ("#| fig-alt: A line that falls.\nfig = draw()", [])], "a result is missing below: fig = draw()"),
    ([*GOOD, ("for i in range(2): print(i)", [])], "a result is missing"),
    ([*GOOD, ("work()", stream(" 40%|####      | 2/5", "stderr"))], "a progress bar in the output of: work()"),
    ([*GOOD, ("work()", stream("3.1 it/s", "stderr"))], "a progress bar"),
    ([*GOOD, ("work()", stream("\x1b[31mred\x1b[0m"))], "a terminal escape in the output of: work()"),
    ([*GOOD, ("work()", [dict(output_type="error", ename="E", evalue="", traceback=[])])], "an error in the output"),
    ([*GOOD, ("fig = draw()", picture())], "a picture without `#| fig-alt:`"),
    ([*GOOD, ("table()", markdown("[there](nowhere.ipynb)"))], "a dead link: nowhere.ipynb"),
    ([*GOOD, ("table()", markdown("[there](#no-heading)"))], "a dead link: #no-heading"),
    ([*GOOD, ("table()", markdown("[there](20_page.ipynb#no-heading)"))], "a dead link: 20_page.ipynb#no-heading"),
    ([*GOOD, ("table()", markdown("![](https://example.org/picture.png)"))], "a picture without an alternative text"),
    ([*GOOD, ("table()", markdown("<img src='picture.png'>"))], "a picture without an alternative text"),
])
def test_a_fault_is_found(project, cells, words):
    found = site.faults(write_page(project, *cells))
    assert len(found) == 1 and words in found[0]


SILENT = ["x = 3", "test_eq(1, 1)", "if x: print(x)", "x;", "def f(): return 1", "model.step()"]


@pytest.mark.parametrize("source", SILENT)
def test_a_cell_that_shows_nothing_needs_no_output(project, source):
    assert site.faults(write_page(project, *GOOD, (source, []))) == []


def test_an_introduction_that_is_lost_is_found(project, monkeypatch):
    settings = (project / "pyproject.toml").read_text().replace('"semeda._site:KeepIntroduction",', "")
    (project / "pyproject.toml").write_text(settings)
    forget()
    [fault] = site.faults(write_page(project, *GOOD))
    assert fault.startswith("the introduction is not on the page: introduction stands here")


def test_two_pages_of_one_name_are_found(project):
    [fault] = site.collisions([project / "nbs" / "08_evaluate.ipynb", project / "nbs" / "evaluate.ipynb"])
    assert fault == "08_evaluate.ipynb and evaluate.ipynb are one page"


EATEN = "#| export\ndef edges(x):\n    'The edge map E* of a mask, as in a*b*c and <one>'\n    return x"


def test_a_docstring_that_markdown_would_eat_is_mended_or_found(project):
    assert site.faults(write_page(project, *GOOD, (EATEN, []))) == []
    settings = (project / "pyproject.toml").read_text().replace('"semeda._site:PlainDocstrings",', "")
    (project / "pyproject.toml").write_text(settings)
    forget()
    [fault] = site.faults(write_page(project, *GOOD, (EATEN, [])))
    assert fault.startswith("a docstring is not shown as it was written: The edge map E* of a mask")


def test_addresses_in_a_docstring_stay_as_they_are():
    words = escaped("see [`read_image`](reading.html#read_image) and a_b * $x_1$")
    assert words == r"see [`read_image`](reading.html#read_image) and a\_b \* $x_1$"


def test_stale_outputs_are_found(project):
    path = write_page(project, *GOOD)
    record(path)
    assert site.faults(path) == []
    for before, after in (("half(3)", "half(4)"), ("1.5", "2.5")):
        record(path)
        path.write_text(path.read_text().replace(before, after))
        forget()
        [fault] = site.faults(path)
        assert fault.startswith("code or outputs have changed since the page was executed")
    path.write_text(path.read_text().replace('"executed"', '"else"'))
    assert site.stale(path) == [f"the page was never executed: python -m tests.refresh {path.name}"]


def test_links_to_pages_anchors_and_files_are_followed(project):
    (project / "nbs" / "file.svg").write_text("<svg/>")
    links = "## A heading: `x`, *y*\n\n[a](20_page.ipynb) [b](page.html#half) [c](#a-heading-x-y) [d](file.svg)"
    assert site.faults(write_page(project, *GOOD, ("table()", markdown(links)))) == []


def test_an_index_entry_that_leads_nowhere_is_found(project):
    path = write_page(project, *GOOD)
    places = dict(half="page.html#half", gone="page.html#gone", _own="page.html#_own", other="other.html#other")
    index = {"package.page": {f"package.page.{name}": (address, "file.py") for name, address in places.items()}}
    first, second = site.dead_entries([path], index, path.parent)
    assert first == "a dead entry in the index of names: package.page.gone is not at page.html#gone"
    assert "package.page.other is not at other.html#other" in second


def test_numbers_stand_beside_equations_and_columns_have_names(project):
    table = "| | n |\n|---|---:|\n| a | 1 |"
    path = write_page(project, *GOOD, ("table()", markdown(table)), title=f"{TITLE}\n\n$$a = b. \\tag{{6}}$$")
    text = "\n".join(site.texts(path))
    assert "{#equation-6 .numbered-equation}" in text and "[(6)]{.equation-number}" in text and "tag" not in text
    assert "| [row]{.visually-hidden} | n |" in text


@pytest.mark.parametrize("name, text, kept", [
    ("stdout", "mIoU 0.5\n", True), ("stderr", "semeda-train: lr is -1; expected at least 0\n", True),
    ("stderr", "/home/me/.venv/lib/python3.12/site-packages/x.py:1: a warning\n", False),
    ("stdout", "train:  50%|#####     | 5/10 [00:01<00:01]\n", False),
])
def test_pages_keep_no_messages_of_other_libraries(name, text, kept):
    assert is_of_the_page(dict(output_type="stream", name=name, text=[text])) == kept


def test_what_is_printed_in_pieces_is_one_output():
    pieces = stream("a\nb") + stream("c\n") + stream("d\n", "stderr") + [dict(output_type="display_data", data={})]
    assert joined(pieces) == [
        dict(output_type="stream", name="stdout", text=["a\n", "bc\n"]), *stream("d\n", "stderr"), pieces[-1]]
    assert joined([*pieces[-1:], *pieces[-1:]]) == [*pieces[-1:], *pieces[-1:]]
