"""What the documentation site needs beyond nbdev's own processing of a page; named in `[tool.nbdev]`."""
import ast
import re
from copy import deepcopy
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb
from nbdev.processors import Processor, add_links

HIDDEN = {"hide", "default_exp"}
PLUMBING = {"export", "exporti"}
EQUATION = re.compile(r"\$\$((?:(?!\$\$).)*?)\\tag\{(\w+)\}((?:(?!\$\$).)*?)\$\$", re.DOTALL)
LINKED_TWICE = re.compile(r"\[\[(`[^`]+`)\]\([^)]*\)\]\(([^)]*)\)")
RULE = re.compile(r"\|[-:| ]*-[-:| ]*\|")


class KeepIntroduction(Processor):
    "Give back the text of a page's first cell: nbdev turns that cell into front matter and drops what else it says"
    def begin(self):
        cells = [cell for cell in read_nb(self.nb.path_).cells if cell.cell_type == "markdown"]
        text = re.sub(r"^(# .*|> .*)$", "", cells[0].source if cells else "", flags=re.MULTILINE).strip()
        shown = [cell.source for cell in self.nb.cells if cell.cell_type == "markdown"]
        if not text or any(text[:60] in source for source in shown):
            return
        introduction = mk_cell(text, "markdown")
        add_links(introduction)
        self.nb.cells.insert(1, introduction)


class OpeningPicture(Processor):
    "Show a chapter's first picture at its top too, where it would come later than the first screen"
    SCREEN = 8 # cells

    def begin(self):
        cells = self.nb.cells
        place = next((k for k, cell in enumerate(cells) if _picture(cell)), 0)
        intro = next((k for k, cell in enumerate(cells) if _is_prose(cell)), 0)
        if not Path(self.nb.path_).name[0].isdigit() or place < self.SCREEN:
            return
        opening = deepcopy(cells[place])
        opening.source = f"#| echo: false\n{opening.source}"
        opening.outputs = [_picture(opening)]
        anchor = mk_cell("[]{#opening-picture}", "markdown")
        caption = mk_cell("From [further down](#opening-picture) on this page.", "markdown")
        cells[place:place] = [anchor]
        cells[intro + 1:intro + 1] = [opening, caption]


def _is_prose(cell):
    "Whether a cell is Markdown that a reader sees"
    return cell.cell_type == "markdown" and not cell.source.startswith("<!--")


def _picture(cell):
    "The first output of a cell that is a picture"
    return next((output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})), None)


class FoldPlumbing(Processor):
    "Keep exported cells on the page, folded and below the signatures of what they define; drop cells of imports alone"
    def begin(self):
        cells = []
        waiting = None
        for cell in self.nb.cells:
            if waiting is not None and not getattr(cell, "has_sd", False):
                cells.append(waiting)
                waiting = None
            if cell.cell_type != "code" or not cell.directives_.keys() & (HIDDEN | PLUMBING):
                cells.append(cell)
            elif cell.directives_.keys() & PLUMBING and _does_more_than_import(cell.source):
                waiting = _folded(cell)
        self.nb.cells[:] = cells + ([waiting] if waiting is not None else [])


def _does_more_than_import(source: str) -> bool:
    "Whether code holds a statement other than an import"
    return any(not isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in ast.parse(source).body)


def _folded(cell):
    "The cell with Quarto's options for folded code"
    cell.source = f'#| code-fold: true\n#| code-summary: "Source"\n{cell.source}'
    return cell


class PlainSignatures(Processor):
    "Types of this package without the name of the kernel's module, and links to its pages relative to the page"
    def begin(self):
        depth = len(Path(self.nb.path_).parent.resolve().relative_to(_notebooks()).parts)
        self.root = "../" * depth

    def cell(self, cell):
        if cell.cell_type == "markdown":
            cell.source = self._relative(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in ("text/markdown", "text/plain"):
                if kind in data:
                    data[kind] = self._relative(re.sub(r"\b__main__\.", "", "".join(data[kind])))

    def _relative(self, text):
        """Links from the page's own folder; a method has no heading of its own, so its link leads to its class.
        nbdev puts a link into one that is there already: the page's own stays."""
        text = LINKED_TWICE.sub(r"[\1](\2)", text)
        text = re.sub(r"\]\(/([\w./-]+\.html)", rf"]({self.root}\1", text)
        return re.sub(r"(\]\([\w./-]+\.html#\w+)\.\w+\)", r"\1)", text)


def _notebooks():
    "The folder of the notebooks"
    from nbdev.config import get_config
    return get_config().nbs_path.resolve()


class PlainDocstrings(Processor):
    "Docstrings as they were written: nbdev puts them between asterisks, and Markdown takes those within as the end"
    def cell(self, cell):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "show_doc(" in cell.source and "text/markdown" in data:
                data["text/markdown"] = _plain_docstring("".join(data["text/markdown"]))


def _plain_docstring(text):
    "What follows a signature, without emphasis on its first line and with nothing that Markdown would take as such"
    signature, fence, words = text.rpartition("\n```")
    first, blank, rest = words.strip().partition("\n\n")
    if not fence or not (first.startswith("*") and first.endswith("*")):
        return text
    return f"{signature}{fence}\n\n{escaped(first[1:-1])}{blank}{rest}"


def escaped(text: str) -> str:
    "Text whose asterisks, underscores and angle brackets stand for themselves, but in code, formulas and addresses"
    parts = re.split(r"(`[^`]*`|\$[^$]+\$|\]\([^)]*\))", text)
    return "".join(part if k % 2 else re.sub(r"([*_<])", r"\\\1", part) for k, part in enumerate(parts))


class JoinFolded(Processor):
    "One fold for cells of folded code in a row that show nothing; the last of them may"
    def begin(self):
        cells = []
        for cell in self.nb.cells:
            if cells and self._folded(cells[-1]) and self._folded(cell) and not cells[-1].outputs:
                options, code = _options(cell.source)
                cell.source = options + f"{_options(cells.pop().source)[1]}\n\n{code}"
            cells.append(cell)
        self.nb.cells[:] = cells

    def _folded(self, cell):
        "Whether a cell's code is folded by itself, or by its folder's _metadata.yml"
        options = _options(cell.source)[0] if cell.cell_type == "code" else "#| echo: false"
        if "echo: false" in options or "code-fold: show" in options:
            return False
        return "code-fold: true" in options or Path(self.nb.path_).parent.name == "paper"


def _options(source):
    "The first lines of a cell, which are for Quarto, and the rest"
    found = re.match(r"(?:#\|.*\n?)*", source).group()
    return found, source[len(found):]


class NumberedEquations(Processor):
    "Write an equation's number beside it: MathML, which needs no script, has none of its own"
    def cell(self, cell):
        if cell.cell_type == "markdown":
            cell.source = EQUATION.sub(_numbered, cell.source)


def _numbered(match):
    "An equation and its number in a box, to which `#equation-6` leads"
    before, number, after = match.groups()
    box = f"::: {{#equation-{number} .numbered-equation}}"
    return f"\n\n{box}\n$${before.rstrip()}{after}$$\n\n[({number})]{{.equation-number}}\n:::\n\n"


class NamedColumns(Processor):
    "Give an empty column title a name that screen readers find"
    def cell(self, cell):
        if cell.cell_type == "markdown":
            cell.source = _with_names(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = _with_names("".join(data["text/markdown"]))


def _with_names(text):
    "Markdown in which no column of a table is without a title"
    lines = text.split("\n")
    for i, rule in enumerate(lines[1:]):
        if RULE.fullmatch(rule.strip()) and lines[i].lstrip().startswith("|"):
            titles = lines[i].strip().strip("|").split("|")
            named = [title if title.strip() else f" [{'row' if k == 0 else 'column'}]{{.visually-hidden}} "
                     for k, title in enumerate(titles)]
            lines[i] = f"|{'|'.join(named)}|"
    return "\n".join(lines)
