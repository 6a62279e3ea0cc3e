"""The tests of what differs from the last commit, and as many of the fast ones as fit into a budget.

    python -m tests.quick             what `make quick` runs
    python -m tests.quick --record    run all tests and write how long they take to tests/durations.json

A test that durations.json does not name takes less than `SHORT` seconds. Fixtures of a whole module are counted once
for each file, as `tests/test_x.py::fixtures`. After `LIMIT` seconds the rest is skipped, and says so.
"""
import argparse
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DURATIONS = ROOT / "tests" / "durations.json"
SHORT = .2 # seconds
BUDGET = 60 # seconds of CPU: 30 s on 2 cores
LIMIT = 45 # seconds on the clock
START = time.monotonic()


def read_durations():
    "Seconds by test function, or by `tests/test_x.py::*` for each of a file"
    return json.loads(DURATIONS.read_text()) if DURATIONS.is_file() else {}


def changed_files():
    "Files that differ from the last commit, and new ones"
    found = []
    for command in (["diff", "--name-only", "HEAD"], ["ls-files", "--others", "--exclude-standard"]):
        found += subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    return found


def rooms_of(files):
    "Modules that files belong to: nbs/25_data.ipynb, semeda/data.py and tests/test_data.py are of data"
    names = [re.fullmatch(r"(?:nbs/\d+_|semeda/|tests/test_)(\w+)\.(?:ipynb|py)", file) for file in files]
    return {name[1] for name in names if name}


def rank(path, rooms):
    "0 for the tests of a room that changed, 1 for tests that import it, 2 for all others"
    if path.stem.removeprefix("test_") in rooms:
        return 0
    imported = set(re.findall(r"semeda\.(\w+)", path.read_text(encoding="utf-8")))
    return 1 if imported & rooms else 2


def file_and_function(nodeid):
    "tests/test_x.py::test_y, without parameters"
    return nodeid.partition("[")[0]


def uses_shared_fixtures(item):
    "Whether a test needs a fixture that is made once for several tests"
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(d[-1].scope != "function" and d[-1].baseid.startswith("tests/test_") for d in definitions if d)


def choose(items, durations, rooms, budget):
    "Those tests that fit into the budget: first of what changed, then the shortest"
    groups = defaultdict(list)
    for item in items:
        groups[file_and_function(item.nodeid)].append(item)
    ranks = {path: rank(path, rooms) for path in {item.path for item in items}}
    typical = {name: durations.get(f"{name.partition('::')[0]}::*", .01) for name in groups} # of its file
    cost = {name: durations.get(name, typical[name]) for name in groups}
    chosen, paid = [], set()
    for name in sorted(groups, key=lambda name: (ranks[groups[name][0].path], cost[name], name)):
        shared = f"{name.partition('::')[0]}::fixtures" if uses_shared_fixtures(groups[name][0]) else None
        price = cost[name] + (durations.get(shared, 0) if shared not in paid else 0)
        if price <= budget:
            budget -= price
            paid.add(shared)
            chosen += groups[name]
    return chosen


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only what changed and what is fast")
    parser.addoption("--record", action="store_true", help="write tests/durations.json")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--quick"):
        return
    durations = read_durations()
    chosen = {item.nodeid for item in choose(items, durations, rooms_of(changed_files()), BUDGET)}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


def pytest_runtest_setup(item):
    if item.config.getoption("--quick") and time.monotonic() - START > LIMIT:
        pytest.skip(f"after {LIMIT} s the rest is left to make test")


class Recorder:
    "Adds up what each test function takes"
    def __init__(self):
        self.seconds = defaultdict(float)

    def pytest_runtest_logreport(self, report):
        name = file_and_function(report.nodeid)
        if report.when == "setup" and report.duration > SHORT:
            name = f"{name.partition('::')[0]}::fixtures"
        self.seconds[name] += report.duration

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"): # not in a process of pytest-xdist
            long = {name: round(s, 1) for name, s in sorted(self.seconds.items()) if s > SHORT}
            DURATIONS.write_text(json.dumps(long, indent=1) + "\n")


def pytest_configure(config):
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder())


def files_to_collect(durations, rooms):
    "Test files of what changed, and those whose tests are not known to be long: importing a file takes time too"
    files = sorted((ROOT / "tests").glob("test_*.py"))
    typical = {file: durations.get(f"tests/{file.name}::*", 0) for file in files}
    return [str(file) for file in files if rank(file, rooms) == 0 or typical[file] < 1]


def main(argv=None):
    parser = argparse.ArgumentParser("tests.quick", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="run all tests and write tests/durations.json")
    args, more = parser.parse_known_args(argv)
    options = ["-p", "tests.quick", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *more]
    if args.record:
        return pytest.main([*options, "--record"])
    return pytest.main([*options, "--quick", *files_to_collect(read_durations(), rooms_of(changed_files()))])


if __name__ == "__main__":
    sys.exit(main())
