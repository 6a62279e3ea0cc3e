"""README.md is nbs/index.ipynb as Markdown: `make readme` writes it, a test compares."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme() -> str:
    "The index notebook's text with links that work from the project's root"
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"\]\((?!https?:)([\w./]+)\)", r"](nbs/\1)", text) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
