"""Studies from an installed package: planned, killed and started again, and their pages; groups of photographs."""
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict
from functools import partial

import pytest

from semeda.config import resolve
from semeda.core import InputError
from semeda.settings import read_settings
from semeda.study import plan, settings
from semeda.study import run as study_run
from semeda.study.gains import (
    Target,
    advice,
    best,
    best_weight,
    by_group,
    forest,
    judge,
    losses_table,
    needs,
    not_told_apart,
    targets_table,
    training_curves,
    weights_table,
    weights_tried,
    without_gain,
)
from semeda.study.groups import SCORES, Groups, differences, over_groups, over_pairs, read_groups
from semeda.study.results import Results, Study, label_of
from semeda.study.tables import recipe, row_line

from .conftest import ROOT, run, snapshot, write_camvid
from .test_sweep import BUDGET, kill_tree, stamps, wait_for

ROWS = ("table1_01", "table1_02", "table1_11")
TINY = dict(study="tiny", dataset="camvid", rows=list(ROWS), budget=BUDGET | dict(iterations=20))


def build_wheel(folder):
    "The wheel's content, unpacked"
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    done = run(*line)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("semeda-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "A working folder with a study and tiny photos, and the environment of a package installed from its wheel"
    folder = tmp_path_factory.mktemp("installed")
    site = build_wheel(folder)
    work = folder / "work"
    write_camvid(work / "camvid", count=(3, 4))
    (work / "tiny.json").write_text(json.dumps(TINY | dict(data_root=str(work / "camvid"))))
    return work, dict(PYTHONPATH=str(site), OMP_NUM_THREADS="1")


def command(*args):
    return [sys.executable, "-m", "semeda.study", *map(str, args)]


@pytest.fixture(scope="module")
def swept(installed):
    "A sweep that was killed with one run finished and another at its first checkpoint, and started again"
    work, env = installed
    line, folder = command("run", "tiny.json"), work / "runs" / "tiny"
    half = lambda: [p.parent for p in folder.glob("*/checkpoint.pt") if not (p.parent / "metrics.json").exists()]
    process = subprocess.Popen(line, cwd=work, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    try:
        wait_for(lambda: list((work / "results").glob("*/*.json")) and half(), process)
    finally:
        kill_tree(process)
    [interrupted], [finished] = half(), [p.parent for p in folder.glob("*-s0/metrics.json")]
    before = stamps(finished)
    done = run(*line, "--parallel", 2, cwd=work, env=env)
    return work, interrupted, finished, before, done


def test_installed_package_runs_what_is_missing(swept):
    work, interrupted, finished, before, done = swept
    assert done.returncode == 0, done.stderr
    assert "3 runs, 1 finished, 2 to go" in done.stdout and f"{interrupted.name}: mIoU" in done.stdout
    assert stamps(finished) == before
    assert sorted(p.stem for p in (work / "results" / "tiny").iterdir()) == [f"{row}-s0" for row in ROWS]


def test_killed_run_ends_as_an_undisturbed_one(swept, tmp_path):
    work, interrupted = swept[:2]
    [study] = settings.studies(json.loads((work / "tiny.json").read_text()))
    row = interrupted.name.removesuffix("-s0")
    given = settings.parameters(study, row, 0)
    assert study_run.job(tmp_path / "tiny" / f"{row}-s0", given, tmp_path / "results" / "tiny" / f"{row}-s0.json") == 0
    again, undisturbed = (json.loads((f / "tiny" / f"{row}-s0.json").read_text())
                          for f in (work / "results", tmp_path / "results"))
    assert again["metrics"] == undisturbed["metrics"] and again["counts"] == undisturbed["counts"]
    plan.check_result(again, "tiny", f"{row}-s0", given)


def test_installed_package_renders_table_1(swept):
    work, env = swept[0], dict(PYTHONPATH=str(swept[0].parent / "site"), OMP_NUM_THREADS="1")
    done = run(*command("table", "table1", "--studies", "tiny,nothing", "-p", "resamples=20"), cwd=work, env=env)
    assert done.returncode == 0, done.stderr
    text = (work / "runs" / "table1.ipynb").read_text()
    assert "tiny: 3 runs of 3 rows, seeds 0" in text and "nothing: no results yet" in text and "not run" in text
    assert "not tested here: 1 seed, expected 3" in text and "| holds" not in text
    assert "Table 1" in (work / "runs" / "table1.html").read_text()


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study_run.main("plan smoke --rows table1_01,table1_02 --seeds 3 --set iterations=7".split()) == 0
    assert "runs/smoke/table1_02-s3  7 steps" in capsys.readouterr().out and not list(tmp_path.iterdir())
    for line, told in {
        "plan nothing": "study is 'nothing'; choose from camvid",
        "plan smoke --rows table1_15": "row is 'table1_15'",
        "run smoke --seeds one": "seeds is 'one'",
        "plan smoke --set iterations": "expected NAME=VALUE",
        "table table9": "page is 'table9'; choose from figure1",
        "collect runs/none results/a/b-s0.json": "has no metrics.json",
        "plan smoke --parallel 0": "parallel is 0; expected at least 1",
        "plan smoke --threads 0": "threads is 0; expected an integer, 1..1024",
        "plan smoke --seeds=": "seeds is ''; expected integers",
        "plan smoke --rows=": "row is ''; choose from",
        "plan smoke --set seed=3": "budget has seed '3'; expected none",
        "run smoke --results /proc/none": "results '/proc/none' cannot be written to",
        "run smoke --runs /dev/null/x": "runs '/dev/null/x' cannot be written to",
    }.items():
        assert study_run.main(line.split()) == 2
        [shown] = capsys.readouterr().err.splitlines()
        assert shown.startswith("semeda-study: ") and told in shown
    with pytest.raises(SystemExit):
        study_run.main(["job", "runs/x", "5"])
    assert "given: '5'; expected names and values as JSON" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_of_one_seed_are_not_run_with_another(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text(json.dumps(dict(study="s", seeds=[0, 1], rows=["table1_01", "table1_02"],
                                                     one_seed=["table1_02"])))
    def planned(*args):
        assert study_run.main(["plan", "s.json", *args]) == 0
        return [line.split()[0][7:] for line in capsys.readouterr().out.splitlines() if line.startswith("runs/")]
    assert planned() == ["table1_01-s0", "table1_02-s0", "table1_01-s1"]
    assert planned("--seeds", "1") == ["table1_01-s1"] and planned("--seeds", "0") == planned()[:2]
    assert planned("--seeds", "1,0") == planned()
    assert planned("--seeds", "1", "--rows", "table1_02") == ["table1_02-s1"] # asked for by name


@pytest.mark.parametrize("seconds, jobs, words", [
    ([36000, 0], 8, "about 10.0 h, 8 at a time"), ([3600] * 3, 2, "about 2.0 h, 2 at a time"),
    ([50, 49], 1, "about 99 s"),
    ([7200, None], 2, "time of 1 unknown, the others about 2.0 h, 2 at a time"),
])
def test_a_plan_takes_as_long_as_its_longest_lane(seconds, jobs, words):
    assert plan._time(["to go"] * len(seconds), seconds, jobs) == f": {words}"


def test_a_plan_tells_a_precision_that_this_cpu_emulates(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("semeda.optimise.bfloat16_slowdown", lambda: 26.2)
    asked = "plan smoke --rows table1_01 --seeds 3 --set device=cpu".split()
    words = "a convolution takes 26 times as long as with '32-true': --set precision=32-true changes it"
    for precision, told in (("bf16-mixed", True), ("32-true", False)):
        assert study_run.main([*asked, "--set", f"precision={precision}"]) == 0
        assert (words in capsys.readouterr().out) == told


SPOILT = [
    ("plan", "config.json", "{}", "config.json has no config; expected that of a run"),
    ("plan", "config.json", '{"config": 3}', "config.json has no config"),
    ("plan", "diverged.json", "{}", "diverged.json has no step and error"),
    ("plan", "metrics.json", "{}", "metrics.json has no miou; expected the scores of a run"),
    ("collect", "config.json", "{}", "config.json has no config"),
    ("collect", "config.json", '{"config": {}}', "config.json has no data; expected that of a run"),
    ("collect", "diverged.json", "{}", "diverged.json has no step and error"),
    ("collect", "metrics.json", "{}", "metrics.json has no miou"),
    ("collect", "metrics.json", '{"miou": 0, "boundary_miou": [], "final_weights": "", "iterations": 2}', "no cost"),
]


@pytest.mark.parametrize("part, name, text, told", SPOILT)
def test_spoilt_files_of_a_run_are_told_in_a_line(tmp_path, monkeypatch, capsys, part, name, text, told):
    monkeypatch.chdir(tmp_path)
    config = dict(study="one", rows=["table1_01", "table1_02"])
    (tmp_path / "one.json").write_text(json.dumps(config))
    folder = tmp_path / "runs" / "one" / "table1_01-s0"
    folder.mkdir(parents=True)
    resolved = asdict(resolve(**settings.parameters(settings.studies(config)[0], "table1_01", 0))[0])
    (folder / "config.json").write_text(json.dumps(dict(config=resolved, data={}, initial_weights="")))
    if name != "diverged.json":
        (folder / "metrics.json").write_text("{}")
    (folder / name).write_text(text)
    before = snapshot(tmp_path)
    line = dict(plan=["plan", "one.json"], collect=["collect", str(folder), "results/one/table1_01-s0.json"])[part]
    assert study_run.main(line) == 2
    [shown] = capsys.readouterr().err.splitlines()
    assert told in shown and snapshot(tmp_path) == before


def test_a_torn_history_is_no_obstacle_to_a_plan(tmp_path):
    "The run that goes on writes it anew, from its checkpoint"
    (tmp_path / "checkpoint.pt").touch()
    for text in ("step,lr\n1,2\nx", "\xff", ""):
        (tmp_path / "history.csv").write_text(text, encoding="latin-1")
        assert plan.steps_done(tmp_path) == 0
    (tmp_path / "history.csv").write_text("step,lr\n1,2\n3,2\n")
    assert plan.steps_done(tmp_path) == 3


def test_the_lock_of_a_run_is_taken_in_turns_and_leaves_nothing(tmp_path):
    inside, most = [], []

    def work():
        with study_run.locked(tmp_path / "run"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(.002)
            inside.pop()
    threads = [threading.Thread(target=lambda: [work() for _ in range(10)]) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert most == [1] * 40 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder, name, text, told", [
    ("<img src=x>", "table1_01-s0", "{}", "study is '<img src=x>'; expected a name"),
    ("one", "<b>x</b>-s0", "{}", "is no ROW-sSEED.json; expected a row and a seed"),
    ("one", "x-s0", "{}", "x-s0.json has study None; expected that of a run"),
    ("one", "x-s0", '{"study": "one"', "x-s0.json cannot be read as JSON"),
])
def test_results_of_others(tmp_path, folder, name, text, told):
    (tmp_path / folder / name).parent.mkdir(parents=True)
    (tmp_path / folder / f"{name.replace('/', '')}.json").write_text(text)
    with pytest.raises(InputError, match=told):
        Results(tmp_path / folder)


RESULTS = ROOT / "results" / "losses_half_pixel_0016E5"


def with_results(folder, changes, names=("ppce-s0", "lovasz-s0", "lovasz-s1", "ppce-s1")):
    "A folder of committed results, some of them changed"
    folder.mkdir()
    for name in names:
        record = json.loads((RESULTS / f"{name}.json").read_text()) | dict(study=folder.name)
        (folder / f"{name}.json").write_text(json.dumps(changes.get(name, lambda record: record)(record)))
    return folder


def configured(**settings):
    return lambda record: record | dict(config=record["config"] | settings)


@pytest.mark.parametrize("name, change, told", [
    ("lovasz-s1", configured(loss="smp.LovaszLoss(weight=2)"), "lovasz-s1 differ in loss; expected"),
    ("ppce-s1", configured(iterations=9), "ppce-s1 differ in iterations; expected"),
    ("lovasz-s0", configured(precision="bf16-mixed"), "lovasz-s0 and mine/ppce-s0 differ in precision; expected"),
    ("lovasz-s0", lambda record: record | dict(labels="0"), "differ in labels; expected runs on the same data"),
    ("lovasz-s0", lambda record: record | dict(counts=record["counts"] | dict(data="AAAA")), "counts that cannot be"),
    ("lovasz-s0", lambda record: record | dict(counts=dict(shape=[3])), "lovasz-s0.json has counts that cannot be"),
    ("lovasz-s0", lambda record: record | dict(metrics=None), "lovasz-s0.json has metrics None; expected that of a"),
    ("lovasz-s0", lambda record: record | dict(metrics=dict(miou="1")), "has the mIoU '1'; expected a number"),
    ("lovasz-s0", lambda record: record | dict(cost={}), "has no seconds_per_step in its cost; expected that of a run"),
    ("lovasz-s0", lambda record: record | dict(images=dict(excess_holes=[1])), "expected a number for each of the "),
])
def test_results_that_cannot_be_compared_are_refused(tmp_path, name, change, told):
    with_results(tmp_path / "ours", {})
    Study(tmp_path / "ours")
    with pytest.raises(InputError, match=told):
        Study(with_results(tmp_path / "mine", {name: change}))


def test_one_loss_in_a_row_of_all_groups(tmp_path):
    for drive in ("0006R0", "0016E5"):
        (tmp_path / f"losses_half_pixel_{drive}").mkdir()
        for path in (ROOT / "results" / f"losses_half_pixel_{drive}").glob("*-s1.json"):
            record = json.loads(path.read_text())
            (tmp_path / f"losses_half_pixel_{drive}" / path.name).write_text(json.dumps(record))
    assert read_groups("losses_half_pixel", tmp_path).rows()
    path = tmp_path / "losses_half_pixel_0016E5" / "ppce-s1.json"
    text, both = path.read_text(), "losses_half_pixel_0006R0/ppce-s1 and losses_half_pixel_0016E5/ppce-s1 differ in"
    said = "losses_half_pixel_0016E5/ppce-s1.json has"
    for name, value, told in (("momentum", .5, f"{both} momentum; expected"), ("loss", "focal", f"{said} loss focal"),
                              ("val_group", "0006R0", "ppce-s1 differ in val_group")):
        record = json.loads(text)
        record["config"][name] = value
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match=told):
            read_groups("losses_half_pixel", tmp_path)


def test_a_row_of_another_budget_is_not_compared(tmp_path):
    "A study's file was changed after its runs: one row had them all"
    for drive in ("0006R0", "0016E5"):
        shutil.copytree(ROOT / "results" / f"losses_half_pixel_{drive}", tmp_path / f"losses_half_pixel_{drive}")
        for path in (tmp_path / f"losses_half_pixel_{drive}").glob("lovasz-s*.json"): # in all its runs alike
            record = json.loads(path.read_text())
            record["config"] |= dict(lr=.5)
            path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="lovasz-s[01].json has lr 0.5; expected 0.001, as the study says: move"):
        read_groups("losses_half_pixel", tmp_path)


@pytest.mark.parametrize("name, change, told", [
    ("lovasz-s0", configured(iterations=9), "ppce-s0 and mine/lovasz-s0 differ in iterations|differ in iterations"),
    ("lovasz-s0", configured(val_group="b"), "differ in val_group; expected runs on the same data"),
    ("lovasz-s0", lambda record: record | dict(initial_weights="0"), "differ in initial_weights; expected"),
    ("lovasz-s0", lambda record: record | dict(diverged=dict(step=1, error="")) | configured(crop=9)(record),
     "differ in crop; expected"),
])
def test_runs_of_other_budgets_and_weights_are_refused(tmp_path, name, change, told):
    with pytest.raises(InputError, match=told):
        Study(with_results(tmp_path / "mine", {name: change}))


def test_edge_nets_of_one_name_are_one_net(tmp_path):
    with_net = lambda weights: lambda record: configured(edge_net="mine.safetensors")(record) | dict(
        edge_net=dict(weights=weights, f1=1.))
    changes = {"lovasz-s0": with_net("a"), "lovasz-s1": with_net("a")}
    Study(with_results(tmp_path / "mine", changes))
    with pytest.raises(InputError, match="other/lovasz-s0 and other/lovasz-s1 differ in edge_net; expected"):
        Study(with_results(tmp_path / "other", changes | {"lovasz-s1": with_net("b")}))


def test_a_run_that_was_made_longer_is_no_result(tmp_path):
    longer = lambda record: record | dict(metrics=record["metrics"] | dict(extended_from=[500]))
    folder = with_results(tmp_path / "mine", {"ppce-s0": longer})
    record = plan.read_result(folder / "ppce-s0.json")
    with pytest.raises(InputError, match="of a run that was to end after 500 steps and was made longer"):
        plan.check_result(record, "mine", "ppce-s0", record["config"] | dict(label_resize="nearest",
                                                                             upsampling="stretched"))


def test_weights_of_losses_stand_under_their_own(tmp_path):
    tried = dict(x_03={9: 2}, x_1={9: 3}, y_1={9: 1}, y_3={9: 2})
    groups = fake_groups(dict(a={9: 1}), **{row: dict(a=points) for row, points in tried.items()})
    runs = groups.studies["a"].runs
    for row, loss, weight in (("x_03", "Dice", .3), ("x_1", "Dice", 1), ("y_1", "Jaccard", 1), ("y_3", "Jaccard", 3)):
        runs[row][9]["config"].update(loss=f"smp.{loss}Loss(weight={weight})", lambdas=[0, 0, 0])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in weights_table(groups).splitlines()[:4]]
    assert cells[0] == ["", "weight 0.3", "weight 1", "weight 3"]
    assert cells[2] == ["PPCE + Dice", "52.0 / 52.0", "**53.0 / 53.0**", ""]
    assert cells[3] == ["PPCE + Jaccard", "", "51.0 / 51.0", "**52.0 / 52.0**"]


def test_curves_of_runs_that_ended_with_patience():
    groups = fake_groups(dict(a={0: 3}, b={0: 3}))
    groups.studies["a"].runs["ours"][0]["validated"] *= 2
    [ax] = training_curves(groups).axes
    assert all(len(line.get_xdata()) == 1 for line in ax.lines)


def test_a_notebook_is_not_written_over(tmp_path):
    (tmp_path / "report.ipynb").write_text(json.dumps(dict(cells=[], metadata={})))
    with pytest.raises(InputError, match="report.ipynb is there and was not executed for a page; expected another"):
        study_run.render("table1", tmp_path / "report.html", {})
    with pytest.raises(InputError, match="table1.ipynb is there and was not executed for a page"):
        study_run.render("table1", ROOT / "nbs" / "paper" / "table1.html", {})


def test_labels_of_results_hold_no_html():
    assert label_of(dict(loss="their_package:Loss<script>")) == "their_package:Loss&lt;script&gt;"
    assert "<" not in label_of(dict(loss="smp.DiceLoss(weight='<img src=x>')"))


@pytest.mark.parametrize("name", ["table2", "cityscapes", "camvid_paper"])
def test_the_papers_studies_take_caffe_weights_alone(monkeypatch, tmp_path, name):
    "A file with torchvision's keys, such as their resnet101, is then refused without init_style"
    monkeypatch.setenv("SEMEDA_DATA", str(tmp_path))
    for study in settings.studies(settings.read_study(name)):
        config = resolve(**settings.parameters(study, "table1_01", 0))[0]
        assert (config.style, config.init_style, config.backbone) == ("caffe", "", "resnet101")


@pytest.mark.parametrize("config, line", [
    (5, "holds 5; expected settings with values"),
    (dict(studies=dict(study="a")), "studies is {'study': 'a'}; expected a list"),
    (dict(studies=[dict(threads=2)]), "unknown setting 'threads' of a study"),
    (dict(study="."), "study is '.'; expected a name"),
    (dict(study="a/b"), "study is 'a/b'; expected a name"),
    (dict(seeds=[]), "seeds is []; expected a list"),
    (dict(seeds=[0, 1, 1]), "seeds contains 1 twice"),
    (dict(seeds=[True]), "seeds contains True; expected integers from 0"),
    (dict(seeds=[-1]), "seeds contain -1"),
    (dict(rows="table1_01"), "rows is 'table1_01'; expected a list"),
    (dict(rows=["table1_01", "table1_01"]), "rows contains 'table1_01' twice"),
    (dict(rows=["table1_01"], one_seed=["table1_02"]), "one_seed contains 'table1_02'; choose from"),
    (dict(groups=[1]), "groups contains 1; expected names"),
    (dict(budget=None), "budget is None; expected names with values"),
    (dict(variants=dict(a=3)), "variant a is 3"),
    (dict(variants=dict(table1_01=dict(loss="semeda"))), "variant table1_01 has the name of a row of Table 1"),
    (dict(studies=[dict(study="a"), dict(study="a")]), "studies contains 'a' twice"),
    (dict(studies=[]), "studies is []; expected a list of settings"),
    (dict(study="n" * 300), "expected a name"),
    (dict(dataset=5), "dataset is 5; expected text"),
    (dict(dataset=None), "dataset is None; expected text"),
    (dict(data_root=["x"]), "data_root is ['x']; expected text"),
    (dict(init_weights=5), "init_weights is 5; expected text"),
    (dict(rows=[]), "rows is []; expected a list"),
    (dict(groups=["../x"]), "group is '../x'; expected a name"),
    (dict(variants={"../../x": {}}), "variant is '../../x'; expected a name"),
    (dict(variants={"n" * 300: {}}), "expected a name of letters, digits"),
    (dict(variants=dict(a=dict(seed=3))), "variant a has seed 3; expected none, it is set for each run"),
    (dict(budget=dict(name="x")), "budget has name 'x'; expected none, it is set for each run"),
    (dict(budget=dict(row="table1_01")), "budget has row 'table1_01'; expected none"),
    (dict(precisions=["32-true"]), "precisions is ['32-true']; expected seeds with the name of a precision"),
    (dict(precisions={"0": 32}), "precisions is {0: 32}; expected seeds with"),
    (dict(precisions={"3": "32-true"}), "precisions has seed 3; choose from the seeds 0"),
    (dict(precisions={"x": "32-true"}), "precisions has seed 'x'; choose from the seeds 0"),
    (dict(runs=5), "runs is 5; expected a folder"),
    (dict(results="a\0b"), "results is 'a\\x00b'; expected a folder"),
    (dict(threads="two"), "threads is 'two'; expected an integer, 1..1024"),
    (dict(gpu_percent=101), "gpu_percent is 101; expected an integer, 0..100"),
    (dict(partial="x"), "partial is 'x'; expected true or false"),
])
def test_a_wrong_study_is_refused_in_a_line(tmp_path, config, line):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(dict(study="one") | config if isinstance(config, dict) else config))
    with pytest.raises(InputError) as error:
        settings.studies(settings.read_study(path))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_groups_make_a_study_each():
    rows = dict(rows=["table1_01", "table1_02"], one_seed=["table1_02"], seeds=[0, 1])
    config = dict(study="drives", groups=["a", "b"], budget=dict(iterations=3)) | rows
    found = settings.studies(config)
    assert [study["study"] for study in found] == ["drives_a", "drives_b"]
    assert found[1]["budget"] == dict(iterations=3, val_group="b")
    of_first = [(row, seed) for study, row, seed in settings.runs(found) if study["study"] == "drives_a"]
    assert of_first == [("table1_01", 0), ("table1_02", 0), ("table1_01", 1)]


def fake_groups(values, **others):
    "Groups with PPCE at 0.5 and other rows that are ahead by the given points: group -> seed -> points"
    rows = dict(ours=values, **others)
    def record(loss, miou, fragments=1):
        return dict(config=dict(loss=loss), metrics=dict(miou=miou, boundary_miou=[miou] * 5),
                    evaluation=dict(boundary_iou=miou), images=dict(excess_holes=[0, 1], excess_fragments=[fragments]),
                    validated=[dict(step=1, val_miou=miou)])
    studies = {}
    for group in values:
        study = Results.__new__(Results)
        study.runs, study.diverged = dict(ppce={0: record("ppce", .5), 1: record("ppce", .5)}), {}
        for row, points in rows.items():
            runs = {seed: record("edge_iou", .5 + ahead / 100, 2) for seed, ahead in points[group].items()}
            study.runs |= {row: runs} if runs else {}
        studies[group] = study
    return Groups("fake", studies, ["ppce", *rows])


def test_forest_without_a_width_that_was_not_scored():
    groups = fake_groups(dict(a={0: 1}, b={0: 2}, c={0: 3}))
    for study in groups.studies.values():
        for runs in study.runs.values():
            for record in runs.values():
                record["metrics"]["boundary_miou"] = record["metrics"]["boundary_miou"][:3]
    points = [len(ax.lines) for ax in forest(groups).axes]
    assert len(points) == len(SCORES) and points.count(1) == 1 # the line at 0 alone at width 5


def test_interval_over_pairs_is_students():
    from scipy import stats
    values = {("a", 0): 1., ("a", 1): 2., ("b", 0): 4.}
    found = over_pairs(values)
    expected = stats.t.interval(.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert (found.low, found.high) == pytest.approx(expected) and (found.pairs, found.groups) == (3, 2)
    strict = over_groups(values)
    assert strict.mean == pytest.approx(2.75) and strict.pairs == 2 and strict.high - strict.low > 30
    assert over_pairs({("a", 0): 1., ("a", 1): 2.}).low is None and over_pairs({}) is None


@pytest.mark.parametrize("values, score, ahead, result", [
    (dict(a={0: 3, 1: 3.1}, b={0: 3, 1: 3.2}, c={0: 2.9, 1: 3}), "miou", 2.5, "met"),
    (dict(a={0: 2, 1: 2.1}, b={0: 2, 1: 2.2}, c={0: 1.9, 1: 2}), "miou", 2.5, "not met: ahead by less"),
    (dict(a={0: 9, 1: -2}, b={0: 9, 1: -2}, c={0: 9, 1: -2}), "miou", 2.5, "not met: the interval includes 0"),
    (dict(a={0: -3, 1: -3.1}, b={0: -3, 1: -3.2}, c={0: -3, 1: -3}), "miou", 2.5, "not met: worse"),
    (dict(a={0: 3, 1: 3}, b={0: 3}, c={}), "miou", 2.5, "not tested: 3 of 6 pairs of runs"),
    (dict(a={0: 3, 1: 3}, b={0: 3, 1: 3}, c={0: 3, 1: 3}), "fragments", 0, "not met: worse"),
    (dict(a={0: 3, 1: 3}, b={0: 3, 1: 3}, c={0: 3, 1: 3}), "holes", 0, "met"),
])
def test_targets_are_judged(values, score, ahead, result):
    assert judge(fake_groups(values), Target("ppce", "ours", score, ahead))[3] == result


def test_advice_follows_from_the_figures():
    ahead = fake_groups(dict(a={0: 3, 1: 3.1}, b={0: 3, 1: 3.2}))
    assert best(ahead, "miou")[0] == "ours" and without_gain(ahead) == []
    assert "For the highest mIoU: **PPCE + edge IoU**, +3.1" in advice(ahead)
    assert "For fewest fragments: **PPCE** itself" in advice(ahead)
    assert "without another package" not in advice(ahead) # the same row
    behind = fake_groups(dict(a={0: -3, 1: 3.1}, b={0: -3, 1: 3.2}))
    assert "; over the groups alone " in advice(ahead)
    assert without_gain(behind) == ["ours"] and "No gain in mIoU is shown for PPCE + edge IoU" in advice(behind)
    larger = fake_groups(dict(a={0: 9, 1: 0}, b={0: 9, 1: 0}), also=dict(a={0: 1, 1: 1.1}, b={0: 1, 1: 1.2}))
    assert best(larger, "miou")[0] == "also" # the other's interval includes 0
    assert needs("smp.LovaszLoss+edge_iou") == "nothing" # ours are the same
    assert needs("semeda+smp.DiceLoss") == "an Edge net, segmentation-models-pytorch" and needs("edge_iou") == "nothing"


def test_rows_of_which_runs_diverged_are_told_and_not_chosen():
    values = dict(a={0: 3, 1: 3.1}, b={0: 3, 1: 3.2}, c={0: 2.9, 1: 3})
    target, groups = Target("ppce", "ours", "miou", 1), fake_groups(values, other=dict.fromkeys("abc", {0: 1, 1: 1.1}))
    assert judge(groups, target)[3] == "met" and best(groups, "miou")[0] == "ours"
    groups.studies["a"].diverged["ours"] = {9: {}}
    assert judge(groups, target)[3] == "not met: 1 run of PPCE + edge IoU diverged"
    assert best(groups, "miou")[0] == "other" and not_told_apart(groups, "other", SCORES["miou"]) == []
    assert "Runs diverged of PPCE + edge IoU (1)" in advice(groups) and "diverged" not in advice(fake_groups(values))
    groups.studies["b"].diverged["ppce"] = {9: {}, 8: {}}
    assert judge(groups, Target("ppce", "other", "miou", 1))[3] == "not tested: 2 runs of PPCE diverged"
    assert best(groups, "miou") is None and "For " not in advice(groups)


def test_the_baseline_is_not_the_row_with_stretched_logits():
    groups = fake_groups(dict(a={0: 3}, b={0: 3}))
    for study in groups.studies.values():
        study.runs = dict(ppce_stretched={0: dict(config=dict(loss="ppce", upsampling="stretched"))}, **study.runs)
    groups.order = ["ppce_stretched", *groups.order]
    assert groups.baseline() == "ppce"
    for study in groups.studies.values():
        del study.runs["ppce"]
    assert groups.baseline() == ""


def test_rows_of_one_loss_are_told_apart(tmp_path):
    folder = with_results(tmp_path / "mine", {})
    record = json.loads((folder / "lovasz-s0.json").read_text())
    record["metrics"]["stopped_at"] = 1200
    record["config"] |= dict(lr=.5)
    (folder / "faster-s0.json").write_text(json.dumps(record | dict(name="faster-s0")))
    names = [Study(folder).name(row) for row in ("lovasz", "faster")]
    assert names == ["PPCE + Lovasz, lr 0.001", "PPCE + Lovasz, lr 0.5"]
    assert ", lr 0.5, 0.001, " in recipe(Study(folder), {})
    assert [row_line(Study(folder), row)[7] for row in ("lovasz", "faster")] == ["6000", "1200"]
    record["config"] |= dict(lr=.001, edge_net="camvid_v1", edge_steps=600)
    record["edge_net"] = dict(weights="x")
    (folder / "faster-s0.json").write_text(json.dumps(record | dict(name="faster-s0")))
    record["config"] |= dict(edge_net="", edge_steps=3000)
    (folder / "own-s0.json").write_text(json.dumps(record | dict(name="own-s0")))
    names = [Study(folder).name(row) for row in ("faster", "own")]
    assert names == ["PPCE + Lovasz, edge_net camvid_v1", "PPCE + Lovasz, edge_steps 3000"]
    (folder / "own-s0.json").unlink()
    record["edge_net"] = None
    record["config"] |= dict(void="label")
    (folder / "faster-s0.json").write_text(json.dumps(record | dict(name="faster-s0")))
    with pytest.raises(InputError, match="differ in void; expected runs on the same data"):
        Study(folder)


def test_advice_names_those_that_are_not_told_apart():
    near = fake_groups(dict(a={0: 3, 1: 3.1}, b={0: 3, 1: 3.2}), near=dict(a={0: 2.9, 1: 3.2}, b={0: 3.1}),
                       behind=dict(a={0: 1, 1: 1.1}, b={0: 1, 1: 1.2}), apart=dict(a={3: 3}, b={3: 3}))
    assert not_told_apart(near, "ours", SCORES["miou"]) == ["near"]
    assert "in 2 groups; over the groups alone +2.8 to +3.4; not told apart from PPCE + edge IoU." in advice(near)


def test_curves_leave_out_rows_that_share_no_pair():
    groups = fake_groups(dict(a={0: 3}, b={0: 3}), other=dict(a={1: 3}, b={1: 3}), third=dict(a={0: 2}, b={}))
    [ax] = training_curves(groups).axes
    assert len(ax.lines) == 3 and ax.get_title() == "fake: mean of 1 run a row"
    assert len(training_curves(groups, most=2).axes[0].lines) == 2


def test_gains_have_the_direction_of_their_score():
    fewer = fake_groups(dict(a={0: 3, 1: 3.1}, b={0: 3, 1: 3.2}))
    assert without_gain(fewer, "fragments") == ["ours"] and without_gain(fewer, "miou") == []
    for study in fewer.studies.values():
        for record in study.runs["ppce"].values():
            record["images"]["excess_fragments"] = [9]
    assert without_gain(fewer, "fragments") == []


def test_a_table_without_a_baseline_has_scores():
    groups = fake_groups(dict(a={0: 3}, b={0: 3}))
    for study in groups.studies.values():
        del study.runs["ppce"]
    assert groups.baseline() == "" and "| 53.0 |" in losses_table(groups).replace("  ", " ")


def test_a_loss_has_the_cost_that_was_measured_of_it():
    "That of any weight, and of no other reduction or norm"
    groups = fake_groups(dict(a={0: 3}, b={0: 3}), other=dict(a={0: 1}, b={0: 1}))
    for study in groups.studies.values():
        for row, given in (("ours", dict(lambdas=[0, .25, 0])), ("other", dict(reduction="per_class"))):
            for record in study.runs[row].values():
                record["config"] |= dict(loss="semeda", lambdas=[0, 1, 0], reduction="channel_mean") | given
    lines = losses_table(groups, {"SEMEDA": ("123", "45")}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[-4:-2]] for line in lines[2:]]
    assert cells == [["", ""], ["123", "45"], ["", ""]]


def test_a_width_that_was_not_evaluated_is_no_score():
    groups = fake_groups(dict(a={0: 3}, b={0: 3}))
    groups.studies["a"].runs["ours"][0]["metrics"]["boundary_miou"] = [.5, .5]
    found = differences(groups, "ppce", "ours", SCORES["boundary_5"])
    assert list(found) == [("b", 0)] and len(differences(groups, "ppce", "ours", SCORES["boundary_2"])) == 2


def test_the_weight_that_is_furthest_ahead_is_chosen():
    groups = fake_groups(dict(a={9: 1}), x_1=dict(a={9: 2}), x_3=dict(a={9: 2}), x_03=dict(a={9: -1}), y_1=dict(a={}))
    tried = weights_tried(groups)
    assert tried == dict(x=["x_1", "x_3", "x_03"]) # y was not run
    assert best_weight(groups, tried["x"]) == "x_1" and best_weight(groups, ["x_03", "x_3"]) == "x_3"
    groups.studies["a"].runs["x_1"][9]["metrics"]["boundary_miou"] = [0] * 5
    assert best_weight(groups, tried["x"]) == "x_3"
    del groups.studies["a"].runs["x_3"]
    groups.studies["a"].diverged["x_3"] = {9: {}}
    assert best_weight(groups, tried["x"]) == "x_03"


def test_table_of_weights():
    groups = fake_groups(dict(a={9: 1}), x_03=dict(a={9: 2}), x_1=dict(a={9: 3}), x_3=dict(a={}))
    runs = groups.studies["a"].runs
    for row, weight in (("x_03", .3), ("x_1", 1)):
        runs[row][9]["config"].update(loss=f"smp.DiceLoss(weight={weight})", lambdas=[0, 0, 0])
    assert weights_table(groups) == "no results yet" # one is missing
    groups.studies["a"].diverged["x_3"] = {9: dict(config=dict(loss="smp.DiceLoss(weight=3)", lambdas=[0, 0, 0]))}
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in weights_table(groups).splitlines()[:3]]
    assert cells[0] == ["", "weight 0.3", "weight 1", "weight 3"]
    assert cells[2] == ["PPCE + Dice", "52.0 / 52.0", "**53.0 / 53.0**", "diverged"]
    groups.studies["a"].runs["x_3"] = {0: groups.studies["a"].runs["x_1"][9]} # of two runs, the easier one is left
    assert "diverged" in weights_table(groups).splitlines()[2]


def test_weights_of_the_study_are_those_that_were_chosen():
    tried, variants = read_groups("losses_tuning"), settings.read_study("losses")["variants"]
    for loss, rows in weights_tried(tried).items():
        assert variants[loss] == settings.read_study("losses_tuning")["variants"][best_weight(tried, rows)]
    short = settings.read_study("losses_short")["variants"]
    stretched = {row: variants.pop(row) for row in list(variants) if row.endswith("_stretched")}
    assert stretched and all(given.pop("upsampling") == "stretched" for given in stretched.values())
    assert all(given == variants[row.removesuffix("_stretched")] for row, given in stretched.items())
    own = variants.pop("semeda_per_class_own_net")
    assert own == variants["semeda_per_class"] | dict(edge_net="", edge_steps=3000)
    assert variants == {row: given for row, given in short.items() if not row.endswith("_exact")}
    resized = {row: given.pop("label_resize") for row, given in short.items() if row.endswith("_exact")}
    assert resized and all(short[row] == short[row.removesuffix("_exact")] for row in resized)


@pytest.mark.parametrize("values", [dict(a={}, b={}), dict(a={0: 1}, b={}), dict(a={0: 1, 1: 2}, b={1: 3})])
def test_tables_of_few_results(values):
    groups = fake_groups(values)
    text = losses_table(groups) + by_group(groups) + targets_table(groups, [Target("ppce", "ours", "miou", 1)])
    assert "not tested" in text and ("one group alone" in text) == (values == dict(a={0: 1}, b={}))
    assert set(differences(groups, "ppce", "ours", SCORES["miou"])) == {(g, s) for g in values for s in values[g]}


def run_page(name, capsys, **parameters):
    "What a page prints and shows, from its cells run in this process"
    import matplotlib.pyplot as plt
    cells = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())["cells"]
    space, shown = {}, []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        exec(source, space)
        if source.startswith("# Parameters"):
            space |= parameters
        last = source.splitlines()[-1]
        if last.startswith("Markdown("):
            shown.append(eval(last, space).data)
    plt.close("all")
    return capsys.readouterr().out + "\n".join(shown)


def test_pages_without_results(tmp_path, capsys):
    text = run_page("howto/cost", capsys, results=str(tmp_path))
    assert text.count("not measured; `python -m benchmarks") == 12 and "not measured; `make bench`" in text
    text = run_page("paper/table2", capsys, results=str(tmp_path))
    assert "VOC, ImageNet: voc_imagenet, no results yet" in text and "not tested here" in text


def test_page_of_losses_without_results(tmp_path, capsys):
    text = run_page("paper/table_losses", capsys, results=str(tmp_path))
    assert "losses: 0 runs of 0 rows on 0 of 3 drives" in text
    assert "no results yet" in text and "No results yet." in text


def test_page_of_losses_with_two_runs_of_one_drive(tmp_path, capsys):
    for row, loss, source in (("ppce", "ppce", "table1_01"), ("edge_iou", "edge_iou", "lovasz")):
        record = json.loads((ROOT / "results" / "camvid" / f"{source}-s0.json").read_text())
        said = dict(loss=loss, row="", iterations=6000, crop=96, lr=.001, val_every=1000, checkpoint_every=500)
        config = record["config"] | said | dict(val_group="0001TP")
        record |= dict(study="losses_0001TP", name=f"{row}-s0", config=config)
        path = tmp_path / "losses_0001TP" / f"{row}-s0.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
    text = run_page("paper/table_losses", capsys, results=str(tmp_path))
    assert "losses: 2 runs of 2 rows on 1 of 3 drives" in text and "(one group alone)" in text
    assert "not tested: 1 of 6 pairs of runs" in text and "| met" not in text
    assert read_groups("losses", tmp_path).baseline() == "ppce"


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "twice.yaml").write_text("study: x\nvariants:\n  q: {loss: lovasz}\n  q: {loss: ppce}\n")
    with pytest.raises(InputError, match="'q' is there twice"):
        settings.read_study(tmp_path / "twice.yaml")
    (tmp_path / "run.json").write_text('{"lr": 0.1, "lr": 0.9}')
    for read in (read_settings, settings.read_study):
        with pytest.raises(InputError, match="'lr' is there twice; expected it once"):
            read(tmp_path / "run.json")
    (tmp_path / "run.yaml").write_text("lr: 0.1\nlr: 0.9\n")
    for parse in (read_settings, partial(_without_yaml, read_settings)):
        with pytest.raises(InputError, match="'lr' is there twice"):
            parse(tmp_path / "run.yaml")


def _without_yaml(call, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yaml", None)
        return call(*args)


@pytest.mark.parametrize("name", ["ppce-s2", "better-s0"])
def test_a_copy_of_a_result_is_no_other_run(tmp_path, name):
    folder = with_results(tmp_path / "mine", {})
    shutil.copy(folder / "ppce-s0.json", folder / f"{name}.json")
    with pytest.raises(InputError, match=f"result .*{name}.json is mine/ppce-s0 with seed 0; expected the study, name"):
        Study(folder)


OWN = dict(study="own", rows=["table1_01", "a"], variants=dict(a=dict(loss="lovasz", lr=.01)), seeds=[0])


def planned(tmp_path, capsys, files, *more):
    "What `plan` says of study files"
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    status = study_run.main(["plan", *(str(tmp_path / name) for name in files), *more])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_a_parameter_of_all_runs_reaches_all_runs(tmp_path, capsys):
    status, told = planned(tmp_path, capsys, {"own.json": OWN}, "--set", "lr=0.001")
    assert status == 2 and "--set has lr '0.001', but row a has 0.01 of its own; expected --rows without it" in told
    for more in (["--set", "lr=0.01"], ["--set", "lr=0.001", "--rows", "table1_01"], ["--set", "iterations=7"]):
        assert planned(tmp_path, capsys, {"own.json": OWN}, *more)[0] == 0


def test_folders_of_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MINE", str(tmp_path / "there"))
    status, told = planned(tmp_path, capsys, {"own.json": OWN | dict(runs="$MINE/runs")})
    assert status == 0 and f"{tmp_path}/there/runs/own/a-s0" in told and "$" not in told
    status, told = planned(tmp_path, capsys, {"own.json": OWN | dict(results="$NOWHERE/runs")})
    assert status == 2 and "results is '$NOWHERE/runs'; expected that environment variable to be set" in told
    two = {"own.json": OWN | dict(runs="one"), "other.json": OWN | dict(study="other", runs="two")}
    status, told = planned(tmp_path, capsys, two)
    assert status == 2 and "has runs 'two', and another 'one'; expected the same in both, or --runs" in told
    assert planned(tmp_path, capsys, two, "--runs", "three")[0] == 0


def test_groups_of_which_one_holds_another(tmp_path, capsys):
    status, told = planned(tmp_path, capsys, {"own.json": OWN | dict(dataset="camvid", groups=["Seq1", "Seq10"])})
    assert status == 2 and "group Seq1 begins the name of group Seq10, whose images it would hold too" in told


def test_groups_that_are_sub_folders(tmp_path, capsys):
    status, told = planned(tmp_path, capsys, {"own.json": OWN | dict(dataset="folder", groups=["seq1/", "seq10/"])})
    assert status == 0 and "runs/own_seq1/table1_01-s0" in told and "own_seq10/table1_01-s0" in told
    studies = settings.studies(OWN | dict(groups=["seq1/"]), "table1")
    assert [study["budget"]["val_group"] for study in studies] == ["seq1/"]
    with_results(tmp_path / "mine_a", {})
    (tmp_path / "file.json").write_text(json.dumps(dict(study="mine", groups=["a/"], rows=["ppce"])))
    assert read_groups(tmp_path / "file.json", tmp_path).rows() == ["ppce", "lovasz"]


def test_groups_are_read_by_a_studys_file(tmp_path):
    with_results(tmp_path / "mine_a", {})
    (tmp_path / "file.json").write_text(json.dumps(dict(study="mine", groups=["a"], rows=["ppce"])))
    assert read_groups(tmp_path / "file.json", tmp_path).rows() == ["ppce", "lovasz"]
    (tmp_path / "rows.json").write_text(json.dumps(dict(study="mine", groups=["a"])))
    assert read_groups(tmp_path / "rows.json", tmp_path).order[0] == "table1_01"
    (tmp_path / "twice.json").write_text('{"study": "mine", "groups": ["a"], "budget": {}, "budget": {"crop": 9}}')
    with pytest.raises(InputError, match="twice.json cannot be read: 'budget' is there twice; expected it once"):
        read_groups(tmp_path / "twice.json", tmp_path)
    (tmp_path / "none.json").write_text(json.dumps(dict(study="mine", rows=["ppce"])))
    with pytest.raises(InputError, match="study .*none.json has no groups; expected one that has"):
        read_groups(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("given, expected", [("imagenet", "imagenet"), ("./imagenet", os.path.abspath("imagenet"))])
def test_weights_of_imagenet_are_no_path(given, expected):
    [study] = settings.studies(dict(study="mine", dataset="scenes", rows=["table1_01"], init_weights=given))
    assert settings.parameters(study, "table1_01", 0)["init_weights"] == expected


def test_what_pages_say_of_the_drives_alone_is_so():
    "Sentences that are written by hand, which a later run may make untrue"
    groups, certain = read_groups("losses"), []
    for row in groups.rows():
        found = over_groups(differences(groups, "ppce", row, SCORES["boundary_2"]))
        certain += [row] * bool(row != "ppce" and found.low is not None and found.low > 0)
    assert "edge_iou" in certain and not {"lovasz", "lovasz_trimap", "lovasz_edge_iou"} & set(certain)
    both = {row for row in certain if over_groups(differences(groups, "ppce", row, SCORES["miou"])).low > 0}
    assert both == {"semeda_per_class"}
    home, choose = ((ROOT / "nbs" / page).read_text(encoding="utf-8") for page in ("index.ipynb",
                                                                                "howto/choose_a_loss.ipynb"))
    assert "its interval at boundaries includes 0, which that of `edge_iou`, this project's own loss, does not" in home
    assert "the intervals over the drives alone are above 0 in both; with the shipped Edge net" in choose
    assert "over the means of the drives alone is above 0 there, which those with Lovász are not" in choose


def test_no_two_lines_of_a_table_of_losses_are_alike():
    "Rows of one loss with other settings have other names"
    cells = json.loads((ROOT / "nbs" / "paper" / "table_losses.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(o.get("data", {}).get("text/markdown", [])) for cell in cells for o in cell.get("outputs", [])]
    [sieved] = [text for text in shown if "| min_area |" in text]
    begins = [tuple(line.split("|")[1:3]) for line in sieved.splitlines() if line.startswith("|")]
    assert len(begins) > 60 and len(set(begins)) == len(begins)
    home = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    names = [line.split("|")[1] for line in home if line.startswith("| `")]
    assert len(names) > 15 and len(set(names)) == len(names)
    assert "`semeda_per_class`, Edge net camvid_v1" in map(str.strip, names)


def test_what_pages_say_of_semeda_by_class_is_so():
    "Sentences that are written by hand, which a later run may make untrue"
    groups = read_groups("losses")
    found = lambda row, score: differences(groups, "ppce", row, SCORES[score])
    for score in ("miou", "boundary_2"):
        by_class = found("semeda_per_class", score)
        assert over_groups(by_class).low > 0 and min(by_class.values()) > 0 and len(by_class) == 6
        assert .01 < over_pairs(by_class).mean < .014 # about a point
        assert abs(over_pairs(by_class).mean - over_pairs(found("lovasz", score)).mean) < .003
        assert over_pairs(found("semeda", score)).low < 0 < over_pairs(found("semeda", score)).high
        assert over_pairs(found("signed_distance", score)).high < 0
        for row in ("rmi", "boundary_iou", "active_boundary", "jaccard", "dice"):
            assert over_pairs(found(row, score)).low < 0
    assert over_pairs(found("focal", "boundary_2")).high < 0
    own = found("semeda_per_class_own_net", "boundary_2")
    assert len(own) == 3 and max(map(abs, own.values())) < .002 # with nets of the training drives it is level
    records = [study.runs["semeda_per_class_own_net"][1] for study in groups.studies.values()]
    scores = ", ".join(sorted((f"{record['edge_net']['f1']:.2f}" for record in records), reverse=True))
    assert scores == "0.95, 0.83, 0.00" # one that finds nothing, so that its loss is 0
    assert "edge F1 0.95, 0.83 and 0.00" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert min(record["metrics"]["last_losses"]["semeda"] for record in records) < 1e-4
    fragments = {row: over_pairs(found(row, "fragments")).mean for row in groups.rows() if row != "ppce"}
    assert min(fragments, key=fragments.get) == "signed_distance" and fragments["signed_distance"] < 0


def test_what_pages_say_of_boundary_f1_is_so():
    "Sentences that are written by hand, which a later run may make untrue"
    groups = read_groups("losses")
    found = lambda row, score: over_pairs(differences(groups, "ppce", row, SCORES[score]))
    gains = {row: found(row, "boundary_2").mean for row in groups.rows() if row != "ppce"}
    assert max(gains, key=gains.get) == "boundary_f1" and .015 < gains["boundary_f1"] < .025
    assert 18 < found("boundary_f1", "fragments").mean < 20 and found("boundary_f1", "miou").low < 0
    assert found("boundary_dou", "fragments").mean < 3 and found("boundary_dou", "boundary_2").low < 0
