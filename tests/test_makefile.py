import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

# prints its own name and arguments; as python, it also answers which checkout semeda is installed from
STUB = """#!/bin/bash
if [ "$1" = -I ]; then echo "$OWNER"; exit; fi
echo "${0##*/} $*"
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def checkout(tmp_path):
    "A folder with a space in its path, and in it an environment of stubs"
    folder = tmp_path / "my checkout"
    (folder / ".ci").mkdir(parents=True)
    for name in ("Makefile", ".ci/install"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("settings.ini", "setup.py", "constraints.txt"):
        (folder / name).touch()
        os.utime(folder / name, (10**9, 10**9))
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "ruff", "nbdev-test", "jupyter", "papermill"):
        (tools / name).write_text(STUB)
        (tools / name).chmod(0o755)
    (folder / ".venv" / ".semeda-installed").touch()
    return folder


def make(folder, *args, owner=""):
    "What the commands of a target print"
    outer = ("MAKEFLAGS", "MAKELEVEL", "MAKEFILES", "MFLAGS", "VENV", "PYTHON") # of the make that runs the tests
    env = {k: v for k, v in os.environ.items() if k not in outer} | {"OWNER": owner}
    done = subprocess.run(["make", "-s", *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_targets_run_in_a_path_with_a_space(checkout):
    assert make(checkout, "install") == []
    assert make(checkout, "types") == ["python -m mypy"]
    assert make(checkout, "quick", "QUICK_ARGS=-x") == ["ruff check", "python -m tests.quick -x"]
    assert [line.split()[0] for line in make(checkout, "test")][-1] == "nbdev-test"


def test_lab_as_root_and_with_arguments(checkout):
    root = ["--allow-root"] if os.getuid() == 0 else []
    *_, line = make(checkout, "lab", "LAB_ARGS=--no-browser --port 9000")
    assert line.split() == ["jupyter", "lab", *root, "--no-browser", "--port", "9000", "runs/lab/playground.ipynb"]


def test_an_environment_is_made_once_and_again_when_requirements_change(checkout):
    shutil.rmtree(checkout / ".venv")
    stub = checkout / "python stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    made, installed = make(checkout, "install", f"PYTHON={stub}")
    assert made == f"python stub -m venv {checkout}/.venv" and installed.endswith("-c constraints.txt -e .[dev]")
    assert make(checkout, "install") == []
    os.utime(checkout / "settings.ini", (2**32, 2**32))
    assert make(checkout, "install") == [installed]


@pytest.mark.parametrize("marker", [True, False])
def test_the_environment_of_another_checkout_is_left_as_it_is(checkout, tmp_path, marker):
    other = (checkout / ".venv").rename(tmp_path / "their env")
    if not marker:
        (other / ".semeda-installed").unlink()
    os.utime(checkout / "settings.ini", (2**32, 2**32))
    lines = make(checkout, "install", f"VENV={other}", owner="/their/checkout")
    assert lines == [f"using {other} as it is, with semeda installed from /their/checkout"]
    assert (other / ".semeda-installed").exists() == marker and not (checkout / ".venv").exists()
