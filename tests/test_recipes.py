"Each how-to page about somebody else's loop is run from its first cell to its last."
import importlib.util
import json
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from semeda.loss_registry import LOSSES, build_loss
from tests.conftest import ROOT

RECIPES = dict(smp="segmentation_models_pytorch", torchvision="torchvision", lightning="lightning", loop="torch",
               add_a_loss="torch", huggingface="transformers")


@pytest.fixture
def registered():
    "What a page registers is gone after it"
    before = dict(LOSSES)
    yield
    for name in set(LOSSES) - set(before):
        LOSSES.pop(name)
    assert dict(LOSSES) == before


@pytest.mark.parametrize("page", RECIPES)
def test_recipe(page, capsys, registered):
    if importlib.util.find_spec(RECIPES[page]) is None:
        pytest.skip(f"{RECIPES[page]} is not installed; pip install 'semeda[recipes]' brings it")
    cells = json.loads((ROOT / "nbs" / "howto" / f"{page}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace = dict(__name__=f"recipe_{page}")
    for i, source in enumerate(code):
        exec(compile(source, f"{page}.ipynb, code cell {i}", "exec"), namespace)
    assert capsys.readouterr().out.strip()


def test_mmsegmentation_by_its_protocol(monkeypatch):
    "The class of the page, registered and called as a decode head of MMSegmentation 1.x does"
    kept = {}
    registry = ModuleType("mmseg.registry")
    registry.MODELS = SimpleNamespace(register_module=lambda: lambda kind: kept.setdefault(kind.__name__, kind))
    monkeypatch.setitem(sys.modules, "mmseg", ModuleType("mmseg"))
    monkeypatch.setitem(sys.modules, "mmseg.registry", registry)
    cells = json.loads((ROOT / "nbs" / "howto" / "loop.ipynb").read_text())["cells"]
    [text] = [text for text in map("".join, (cell["source"] for cell in cells)) if "## MMSegmentation" in text]
    recipe, config = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(recipe, {})
    namespace = {}
    exec(config, namespace)
    given = dict(namespace["model"]["decode_head"]["loss_decode"])
    loss = kept[given.pop("type")](loss_weight=.5, **given)
    logits, labels = torch.randn(2, 4, 9, 9), torch.randint(4, (2, 9, 9))
    found = loss(logits, labels, weight=None, ignore_index=255)
    assert loss.loss_name.startswith("loss_")
    torch.testing.assert_close(found, .5 * build_loss(given["expression"])(logits, labels))
