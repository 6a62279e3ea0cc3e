"""What the documentation site needs beyond nbdev's own processing of a page; named in `[tool.nbdev]`."""
import ast
import re
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb
from nbdev.processors import Processor, add_links

HIDDEN = {"hide", "default_exp"}
PLUMBING = {"export", "exporti"}


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
        return re.sub(r"\]\(/([\w./-]+\.html)", rf"]({self.root}\1", text)


def _notebooks():
    "The folder of the notebooks"
    from nbdev.config import get_config
    return get_config().nbs_path.resolve()
