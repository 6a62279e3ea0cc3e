"Each how-to page about somebody else's loop is run from its first cell to its last."
import importlib.util
import json

import pytest

from tests.conftest import ROOT

RECIPES = dict(smp="segmentation_models_pytorch", torchvision="torchvision", lightning="lightning", loop="torch",
               add_a_loss="torch", huggingface="transformers")


@pytest.mark.parametrize("page", RECIPES)
def test_recipe(page, capsys):
    if importlib.util.find_spec(RECIPES[page]) is None:
        pytest.skip(f"{RECIPES[page]} is not installed; pip install 'semeda[recipes]' brings it")
    cells = json.loads((ROOT / "nbs" / "howto" / f"{page}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace = dict(__name__=f"recipe_{page}")
    for i, source in enumerate(code):
        exec(compile(source, f"{page}.ipynb, code cell {i}", "exec"), namespace)
    assert capsys.readouterr().out.strip()
