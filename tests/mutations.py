"""Small faults put into the package one at a time: do its tests see them?

    pip install cosmic-ray
    python -m tests.mutations [MODULE ...] [--places 8] [--seed 0] [--out results/mutations.json]
    python -m tests.mutations --again results/mutations.json

In each module some places are drawn at random, and at each place one of cosmic-ray's operators. A copy of the
tree gets the change, and the tests of the module run in a process that was forked from one in which torch is
imported already. A change that no test sees has survived. --again tries the survivors of a file once more, with
the tests of their module and those of its users, and gives each that is left its reason of REASONS.
"""
import argparse
import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
TESTS = { # of each module: the files that must see a fault in it, the quickest first
    "edges": ["edges"], "edge_net": ["edge_net"], "losses": ["losses"], "semeda_term": ["losses"],
    "edge_iou": ["edge_iou"],
    "rivals": ["rivals"], "boundary_losses": ["rivals"], "loss_inputs": ["loss_inputs", "losses"],
    "deeplab": ["deeplab"], "crops": ["crops"], "reading": ["reading", "data"], "checkpoints": ["checkpoints"],
    "counts": ["metrics"], "boundary_iou": ["metrics"], "structure": ["metrics"], "metrics": ["metrics"],
    "intervals": ["metrics", "report"], "evaluation": ["evaluate"], "optimise": ["trainer"], "settings": ["config"],
}
USERS = { # the tests of what uses a module, for --again
    "edge_net": ["losses"], "losses": ["loss_registry"], "edge_iou": ["loss_registry"], "rivals": ["loss_registry"],
    "boundary_losses": ["loss_registry"], "loss_inputs": ["loss_registry"], "deeplab": ["networks", "checkpoints"],
    "crops": ["data", "predict"], "reading": ["evaluate"], "checkpoints": ["networks"],
    "counts": ["report", "evaluate"],
    "boundary_iou": ["evaluate"], "structure": ["evaluate"], "metrics": ["evaluate", "extending"],
    "intervals": ["evaluate", "study"], "evaluation": ["report"], "optimise": ["run"], "settings": ["trainer"],
}
REASONS = { # of a line as it was changed -> why it may live
    "found, true = found & (truth < 255), truth == 1":
        "an edge map holds 0, 1 and 255: nothing is above",
    "step = max(1, 2**17 // pixels if not logits.device.type == \"cpu\" else len(logits))":
        "how many images are done at a time: time and memory, no value",
    "errors = (of_class - p[classes]).abs().masked_fill(labels == void, - 2.0) # void comes last and counts nothing":
        "any negative error sorts last and is cut off",
    "if style is \"caffe\":":
        "Python keeps one copy of such a word",
    "return f\"backbone.layer{int(unit[1]) - 1}.{int(unit[2]) - 1}.{conv if unit[4] >= 'conv' else norm}.{unit[5]}\"":
        "the layout's units are conv and bn, and bn sorts before",
    "draws = [scores_of((w @ flat).view(-1, *counts.shape[1:])) for w in weights.split( 251)]":
        "how many draws are done at a time: time and memory, no value",
}
SLOWEST = 300 # seconds of processor time after which a test run counts as stuck
OPERATORS = ("ReplaceBinaryOperator_", "ReplaceComparisonOperator_", "ReplaceUnaryOperator_", "ReplaceTrue",
             "ReplaceFalse", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot", "NumberReplacer")


def in_words(node) -> bool:
    "Whether a node stands in a signature, an annotation, an import, a decorator or an error's message"
    while node.parent is not None:
        if node.type in ("param", "annassign", "import_from", "import_name", "decorator", "raise_stmt"):
            return True
        if node.parent.type == "funcdef" and node is getattr(node.parent, "annotation", None):
            return True
        node = node.parent
    return False


def changes(source: str) -> list[tuple[int, int, str, int]]:
    "Line, column, operator and occurrence of each change that can be made"
    import parso
    from cosmic_ray.ast import ast_nodes
    from cosmic_ray.plugins import get_operator, operator_names
    tree, found = parso.parse(source), []
    nodes = list(ast_nodes(tree))
    for name in operator_names():
        if not name.split("/")[1].startswith(OPERATORS):
            continue
        operator, occurrence = get_operator(name)(), 0
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                if not in_words(node):
                    found.append((line, column, name, occurrence))
                occurrence += 1
    return found


def mutated(source: str, name: str, occurrence: int) -> str:
    "The source with one change"
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    return mutate_code(source, get_operator(name)(), occurrence)


def drawn(source: str, places: int, rng: random.Random) -> list[tuple[int, int, str, int]]:
    "One change at each of some places"
    by_place = {}
    for change in changes(source):
        by_place.setdefault(change[:2], []).append(change)
    chosen = rng.sample(sorted(by_place), min(places, len(by_place)))
    return [rng.choice(by_place[place]) for place in sorted(chosen)]


def fork(tree: Path, files: list[str]) -> int:
    "The exit status of pytest over some files of a tree, in a forked process; 99 if it was stuck"
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        for name in [name for name in sys.modules if name.split(".")[0] in ("semeda", "tests")]:
            del sys.modules[name]
        import pytest
        paths = [f"tests/test_{name}.py" for name in files]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *paths])))
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if used(child) > SLOWEST or time.monotonic() - began > 10 * SLOWEST:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 99
        time.sleep(.2)


def used(process: int) -> float:
    "Seconds of processor time that a process has used"
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def imported() -> None:
    "What the tests import and no change touches"
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401
    torch.set_num_threads(1)


def one(tree: Path, module: str, change: tuple, files: list[str]) -> dict:
    "The fate of one change"
    line, _, name, occurrence = change
    path = tree / "semeda" / f"{module}.py"
    source = path.read_text()
    after = mutated(source, name, occurrence)
    place = dict(module=module, operator=name, occurrence=occurrence, line=source.splitlines()[line - 1].strip(),
                 becomes=after.splitlines()[line - 1].strip())
    try:
        ast.parse(after)
        path.write_text(after)
        status = fork(tree, files)
    except SyntaxError:
        status = 2
    finally:
        path.write_text(source)
    return place | dict(survived=status == 0, stuck=status == 99)


def copied(folder: str) -> Path:
    "A copy of the tree to put changes into"
    tree = Path(folder, "tree")
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__"))
    return tree


def first_time(tree: Path, modules: list[str], places: int, seed: int) -> list[tuple[str, tuple]]:
    "The changes to try; the tests must pass without them"
    plan = []
    for module in modules:
        rng = random.Random(f"{seed} {module}")
        plan += [(module, change) for change in drawn((tree/"semeda"/f"{module}.py").read_text(), places, rng)]
        if fork(tree, TESTS[module]):
            sys.exit(f"the tests of {module} fail without any change")
    return plan


def again(tree: Path, rows: list[dict]) -> None:
    "Try survivors with more tests; where a module has changed since, the line is found anew"
    for row in tqdm([row for row in rows if row["survived"]], "survivors"):
        source = (tree/"semeda"/f"{row['module']}.py").read_text()
        fitting = [c for c in changes(source) if c[2].split("/")[1] == row["operator"].split("/")[1]
                   and source.splitlines()[c[0] - 1].strip() == row["line"]
                   and mutated(source, *c[2:]).splitlines()[c[0] - 1].strip() == row["becomes"]]
        if not fitting:
            row["note"] = "the line is no longer there"
            continue
        files = TESTS[row["module"]] + USERS.get(row["module"], [])
        row["survived"] = one(tree, row["module"], fitting[0], files)["survived"]
        if row["survived"]:
            row["reason"] = REASONS.get(row["becomes"], "")


def main() -> None:
    parser = argparse.ArgumentParser("tests.mutations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; none: all")
    parser.add_argument("--places", type=int, default=8, help="in each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", type=Path, metavar="FILE")
    args = parser.parse_args()
    imported()
    with tempfile.TemporaryDirectory() as folder:
        tree, rows = copied(folder), []
        if args.again:
            record = json.loads(args.again.read_text())
            rows = record["rows"]
            again(tree, rows)
            args.again.write_text(json.dumps(record, indent=1) + "\n")
        else:
            for module, change in tqdm(first_time(tree, args.modules or list(TESTS), args.places, args.seed)):
                rows.append(one(tree, module, change, TESTS[module]))
                if args.out:
                    args.out.write_text(json.dumps(dict(seed=args.seed, rows=rows), indent=1) + "\n")
    left = [row for row in rows if row["survived"]]
    for row in left:
        print(f"survived: {row['module']}: {row['line']}  ->  {row['becomes']}  {row.get('reason', '')}")
    print(f"{len(left)} of {len(rows)} survived")


if __name__ == "__main__":
    main()
