"""README.md is nbs/index.ipynb as Markdown: `make readme` writes it, a test compares."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def text_of(cell: dict) -> list[str]:
    "A markdown cell's text, or the Markdown that a code cell shows"
    if cell["cell_type"] == "markdown":
        return ["".join(cell["source"])]
    return ["".join(o["data"]["text/markdown"]) for o in cell["outputs"] if "text/markdown" in o.get("data", {})]


def readme() -> str:
    "The index notebook's text with links that work from the project's root"
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(part for cell in cells for part in text_of(cell))
    text = re.sub(r'(\]\([^)\s]+\))\{fig-alt="[^"]*"\}', r"\1", text)
    return re.sub(r"\]\((?!https?:)([\w./]+(?:#[\w-]+)?)\)", r"](nbs/\1)", text) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
