"""Execute pages in place as the repository keeps them: `python -m tests.refresh nbs/62_plots.ipynb ...`.

`--record` keeps the outputs that are there and notes that they belong to the code. `--parameters` writes the
parameters cell of nbs/train.ipynb from `Config` first."""
import argparse
import ast
import base64
import hashlib
import io
import json
import os
import re
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

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


def small_png(data: str, frequent: int = 96) -> str:
    "A base64 PNG with 256 colours, the most frequent ones as they were, where that is smaller"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        if picture.mode == "P":
            return data
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    counted = sorted(flat.getcolors(flat.width * flat.height), reverse=True)
    rest = flat.quantize(256 - frequent).getpalette()
    colours = [colour for _, colour in counted[:frequent]] + list(zip(rest[::3], rest[1::3], rest[2::3]))
    nearest = cKDTree(colours).query(np.asarray(flat).reshape(-1, 3))[1]
    small = Image.fromarray(nearest.reshape(flat.height, flat.width).astype(np.uint8), "P")
    small.putpalette([value for colour in colours for value in colour])
    file = io.BytesIO()
    small.save(file, "png", optimize=True)
    smaller = base64.b64encode(file.getvalue()).decode()
    return smaller if len(smaller) < len(data) else data


def is_of_the_page(output: dict) -> bool:
    "Whether an output is neither a progress bar nor what another library says on stderr"
    text = "".join(output.get("text", ""))
    foreign = output.get("name") == "stderr" and not text.lstrip().startswith("semeda")
    return not foreign and not BAR.search(text)


def joined(outputs: list[dict]) -> list[dict]:
    "Outputs in which what was printed in several pieces is one"
    found: list[dict] = []
    for output in outputs:
        name = output.get("name")
        if name and found and found[-1].get("name") == name:
            output = output | dict(text=[*"".join([*found.pop()["text"], *output["text"]]).splitlines(True)])
        found.append(output)
    return found


def tidy(notebook: dict):
    "Drop what no page shows: progress bars, messages of other libraries, widget states; make pictures small"
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"].pop("language_info", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["metadata"].pop("execution", None)
        shown = not "".join(cell["source"]).startswith("#| output: false")
        cell["outputs"] = joined([o for o in cell["outputs"] if shown and is_of_the_page(o)])
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
    settings = dict(timeout=900, startup_timeout=300, kernel_name="python3")
    NotebookClient(notebook, resources=folder, **settings).execute()
    notebook["metadata"].pop("widgets", None)
    nbformat.write(notebook, path)


def record(path: Path):
    "Note in the notebook that its outputs belong to its code"
    from nbdev.clean import nbdev_clean
    nbdev_clean.__wrapped__(fname=str(path))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    tidy(notebook)
    notebook["metadata"]["semeda"] = dict(executed=fingerprint(notebook))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def parameter_lines(field) -> list[str]:
    "One parameter of a run as a line of the parameters cell, its help before it where the line would be too long"
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    value = json.dumps(default) if isinstance(default, str) else repr(default)
    code, help = f"{field.name} = {value}", field.metadata["help"]
    choices = ", ".join(map(str, field.metadata["choices"]))
    for words in ([f"{help} ({choices})"] if choices else []) + [help]:
        line = f"{code:<25} # {words}"
        if len(line) <= 120:
            return [line]
    return [*(f"# {words}" for words in textwrap.wrap(help, 116)), code]


def parameters_cell() -> str:
    "The parameters cell of nbs/train.ipynb"
    from semeda.config import Config
    return "\n".join(["# Parameters", *(line for field in fields(Config) for line in parameter_lines(field))])


def write_parameters(path: Path):
    "Replace the parameters cell of a notebook; its outputs stay, since the defaults do"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    [cell] = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    cell["source"] = parameters_cell().splitlines(True)
    ast.parse("".join(cell["source"]))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(args: list[str] | None = None):
    "The command line"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="notebooks")
    parser.add_argument("--record", action="store_true", help="keep the outputs that are there")
    parser.add_argument("--parameters", action="store_true", help="write the parameters cell from Config first")
    options = parser.parse_args(args)
    for path in options.pages:
        if options.parameters:
            write_parameters(path)
        if not options.record:
            execute(path)
        record(path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
