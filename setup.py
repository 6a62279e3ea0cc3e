"""The package's metadata stands in settings.ini and is read from there."""
import json
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
parser = ConfigParser()
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}
extras["dev"] += [x for name in ("notebook", "sweep", "peers", "bench", "export", "recipes") for x in extras[name]]


class BuildWithPages(build_py):
    "Build the package with the notebooks of the tables, so that `semeda-study table` finds them where it is installed"
    def run(self):
        super().run()
        folder = Path(self.build_lib) / "semeda" / "study" / "notebooks"
        for path in [] if self.editable_mode else sorted((root / "nbs" / "paper").glob("*.ipynb")):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    cell["outputs"], cell["execution_count"] = [], None
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")


setup(
    cmdclass=dict(build_py=BuildWithPages),
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=cfg["license"],
    author=cfg["author"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_url"], "Repository": cfg["git_url"]},
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["semeda", "semeda.*"]),
    package_data={"semeda": ["weights/*"], "semeda.study": ["Snakefile", "studies/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["semeda=semeda._modidx:d"]},
)
