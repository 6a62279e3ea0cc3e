"""Execute pages in place as the repository keeps them: `python -m tests.refresh nbs/07_plots.ipynb ...`.

`--record` keeps the outputs that are there and notes that they belong to the code."""
import argparse
import base64
import hashlib
import io
import json
import os
import re
from pathlib import Path

from PIL import Image

BAR = re.compile(r"\d%\||\d+it \[")


def fingerprint(notebook: dict) -> str:
    "Hash of a notebook's code and of what its outputs say in letters; pictures differ from machine to machine"
    digest = hashlib.sha256()
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        digest.update("".join(cell["source"]).encode())
        for output in cell["outputs"]:
            data = output.get("data", {})
            texts = ["".join(data[kind]) for kind in sorted(data) if kind.startswith("text/")]
            digest.update("".join([*texts, *output.get("text", [])]).encode())
    return digest.hexdigest()[:16]


def small_png(data: str, colours: int = 160) -> str:
    "A base64 PNG with few colours, where that is smaller"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    file = io.BytesIO()
    flat.quantize(colours, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    smaller = base64.b64encode(file.getvalue()).decode()
    return smaller if len(smaller) < len(data) else data


def tidy(notebook: dict):
    "Drop progress bars, widget states and numbers of executions; make pictures small"
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"].pop("language_info", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["metadata"].pop("execution", None)
        cell["outputs"] = [o for o in cell["outputs"] if not BAR.search("".join(o.get("text", "")))]
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = small_png("".join(output["data"]["image/png"]))


def execute(path: Path):
    "Run a notebook in its folder, without widgets and progress bars"
    import nbformat
    from nbclient import NotebookClient
    os.environ |= dict(SEMEDA_STATIC="1", TQDM_DISABLE="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    notebook = nbformat.read(path, 4)
    folder = dict(metadata=dict(path=path.parent))
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder).execute()
    tidy(notebook)
    nbformat.write(notebook, path)


def record(path: Path):
    "Note in the notebook that its outputs belong to its code"
    from nbdev.clean import nbdev_clean
    nbdev_clean.__wrapped__(fname=str(path))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"]["semeda"] = dict(executed=fingerprint(notebook))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def main(args: list[str] | None = None):
    "The command line"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="notebooks")
    parser.add_argument("--record", action="store_true", help="keep the outputs that are there")
    options = parser.parse_args(args)
    for path in options.pages:
        if not options.record:
            execute(path)
        record(path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
