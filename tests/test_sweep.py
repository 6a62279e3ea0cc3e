"""Sweeps with Snakemake, with a run that fails; results, their intervals, claims on them."""
import json
import os
import re
import sys
import time
from contextlib import suppress
from importlib.util import find_spec

import pytest
import torch

from semeda.core import InputError
from semeda.loss_registry import TABLE1
from semeda.metrics import paired_bootstrap
from semeda.study import collect as collected
from semeda.study import plan, settings
from semeda.study import run as study_run
from semeda.study.collect import collect, committed, pack, unpack
from semeda.study.results import Study, claim, label_of, over_seeds_and_images, verdict
from semeda.study.tables import rows_table
from tests.conftest import ROOT, run, snapshot, write_camvid

BUDGET = dict(image_size="", layers=2, output_stride=4, iterations=8, batch_size=2, crop=16, edge_steps=5, val_every=0,
              checkpoint_every=1, log_every=1, max_width=3)
ROWS = ("table1_01", "table1_11")
STUDY = dict(study="tiny", dataset="camvid", rows=list(ROWS), budget=BUDGET,
             variants=dict(diverges=dict(loss="ppce", lr=1e6)))


def study_in(folder, **config):
    return STUDY | dict(data_root=str(folder / "camvid")) | config


def snakemake(folder, *args, **config):
    if not find_spec("snakemake"):
        pytest.skip("Snakemake is not installed: pip install 'semeda[sweep]'")
    file = folder / "study.yaml"
    file.write_text(json.dumps(study_in(folder, **config))) # JSON is YAML
    where = ["-s", str(ROOT / "Snakefile"), "-d", str(folder), "--configfile", str(file), "--quiet", "rules"]
    return [sys.executable, "-m", "snakemake", "table1", *where, "--cores", "1", *args]


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "too slow"
        time.sleep(.01)


def kill_tree(process):
    "SIGKILL for a process and for all that it started: a notebook's kernel has a session of its own and would train on"
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        everything = [parent, *parent.children(recursive=True)]
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everything, timeout=60)
    process.communicate()


def stamps(folder):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A sweep with a row that fails, first of all"
    folder = tmp_path_factory.mktemp("sweep")
    write_camvid(folder / "camvid", count=(3, 4))
    first = ("--prioritize", "runs/tiny/diverges-s0/metrics.json")
    done = run(*snakemake(folder, "--until", "run", *first, rows=[*ROWS, "diverges"]), env=dict(OMP_NUM_THREADS="1"))
    return folder, done


def test_a_failing_run_does_not_stop_the_others(finished):
    folder, done = finished
    runs = folder / "runs" / "tiny"
    assert done.returncode != 0 and not (runs / "diverges-s0" / "metrics.json").exists()
    assert all((runs / f"{row}-s0" / "metrics.json").is_file() for row in ROWS), done.stderr[-3000:]
    last = done.stderr[done.stderr.index("1 failed;"):]
    assert "runs/tiny/diverges-s0.log: " in last and "training diverged, expected a smaller lr" in last
    ended = {name: (runs / f"{name}-s0.log").stat().st_mtime for name in ("diverges", *ROWS)}
    assert max(ended, key=ended.get) != "diverges"


@pytest.fixture(scope="module")
def diverged(finished):
    "The row that failed, in a sweep that was started again"
    folder = finished[0]
    return folder, run(*snakemake(folder, "--until", "collect", "--cores", "1", rows=["diverges"]))


def test_a_run_that_diverged_is_not_run_again_and_is_a_result(diverged):
    folder, done = diverged
    assert done.returncode == 0 and "1 runs, 0 finished, 1 diverged, 0 to go" in done.stderr
    assert "runs/tiny/diverges-s0  diverged at step 2" in done.stderr
    record = json.loads((folder / "results" / "tiny" / "diverges-s0.json").read_text())
    assert "training diverged" in record["diverged"]["error"]
    assert record["config"]["lr"] == 1e6 and "metrics" not in record
    study = Study(folder / "results" / "tiny", resamples=20)
    assert study.rows()[-1] == "diverges" and list(study.diverged["diverges"]) == [0] and "diverges" not in study.runs
    sweep = settings.SWEEP | dict(runs=folder / "runs", results=folder / "results")
    assert not study_run.failures(settings.studies(study_in(folder, rows=["diverges"]), "table1"), "table1", sweep)


def test_a_figure_without_its_baseline_is_refused(diverged):
    folder = diverged[0]
    command = snakemake(folder, "--dry-run", rows=["diverges", "table1_01"])
    command = ["figure5" if part == "table1" else part for part in command]
    before = snapshot(folder / "runs")
    done = run(*command)
    assert done.returncode == 2 and snapshot(folder / "runs") == before and "Traceback" not in done.stderr
    assert "snakemake: figure5 compares with runs/tiny/diverges-s0, which has diverged" in done.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(finished):
    folder = finished[0]
    command = snakemake(folder, "--dry-run", seeds=[0, 1])
    before = snapshot(folder / "runs")
    done = run(*command)
    assert done.returncode == 0 and snapshot(folder / "runs") == before, done.stderr
    assert "4 runs, 2 finished, 2 to go: about" in done.stderr
    assert f"runs/tiny/table1_11-s1  {BUDGET['iterations']} steps" in done.stderr


def test_a_page_is_made_anew_whatever_lies_there(finished):
    folder = finished[0]
    page = folder / "runs" / "table1-tiny.html"
    try:
        page.write_text("of another day")
        os.utime(page, (time.time() + 3600,) * 2)
        command = [part for part in snakemake(folder, "--dry-run", seeds=[0, 1]) if part not in ("--quiet", "rules")]
        done = run(*command)
        assert done.returncode == 0 and page.is_file(), done.stderr
        for part in ("job", "collect"): # of runs that were added to the study
            assert re.search(rf"-m semeda.study {part} runs/tiny/table1_11-s1 ", done.stdout + done.stderr), part
        assert f"semeda.study table table1 --studies tiny --results {folder}/results --out" in done.stdout + done.stderr
        done = run(*command, "--config", "results=elsewhere")
        assert f"--results {folder}/elsewhere --out runs/table1-tiny.html" in done.stdout + done.stderr
    finally:
        page.unlink(missing_ok=True)


def test_plan_leaves_out_runs_whose_result_is_there(finished, result):
    folder, study = finished[0], settings.studies(study_in(finished[0], seeds=[0, 1]), "table1")
    kept = folder / "kept" / "tiny" / "table1_01-s1.json"
    kept.parent.mkdir(parents=True)
    record = json.loads(result[0].read_text())
    record |= dict(name="table1_01-s1", config=record["config"] | dict(seed=1))
    kept.write_text(json.dumps(record))
    lines = plan.plan(study, folder / "runs", 1, folder / "kept")
    assert "4 runs, 2 finished, 1 from its result, 1 to go" in lines[-2] and "another folder of results" in lines[-1]
    assert "4 runs, 2 finished, 2 to go" in plan.plan(study, folder / "runs")[-1]
    for change, told in ((dict(lr=.5), "has lr 0.5; expected"), (dict(seed=0), "has seed 0; expected 1")):
        kept.write_text(json.dumps(record | dict(config=record["config"] | change)))
        with pytest.raises(InputError, match=f"{told}.*; name another folder of results, or move the file away"):
            plan.plan(study, folder / "runs", 1, folder / "kept")
    stale = json.loads(result[0].read_text()) # of a run that has finished, from before the study was changed
    kept.with_name("table1_01-s0.json").write_text(json.dumps(stale | dict(config=stale["config"] | dict(lr=.5))))
    kept.unlink()
    with pytest.raises(InputError, match="table1_01-s0.json has lr 0.5; expected .*, or move the file away"):
        plan.plan(study, folder / "runs", 1, folder / "kept")


def test_runs_of_a_seed_go_in_the_precision_of_its_results(finished, result, tmp_path, capsys, monkeypatch):
    "Another precision would be refused by the table, hours later"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text(json.dumps(study_in(finished[0], seeds=[0, 1])))
    kept = tmp_path / "results" / "tiny" / "table1_01-s1.json"
    kept.parent.mkdir(parents=True)
    record = json.loads(result[0].read_text())
    kept.write_text(json.dumps(record | dict(name=kept.stem, config=record["config"] | dict(
        seed=1, precision="bf16-mixed"))))
    told = ("run tiny/table1_11-s1 has precision '32-true'; expected 'bf16-mixed', that of "
            f"{kept.relative_to(tmp_path)}, since runs of a seed are compared: "
            "--set precision=bf16-mixed, or another seed")
    where = "--runs none --results results".split()
    for line, told_of in (("", told), ("--seeds 1", told), ("--seeds 0", ""), ("--set precision=bf16-mixed", "")):
        assert study_run.main(["plan", "s.json", *where, *line.split()]) == (2 if told_of else 0)
        assert told_of in capsys.readouterr().err
    (tmp_path / "s.json").write_text(json.dumps(study_in(finished[0], seeds=[0, 1], precisions={"1": "bf16-mixed"})))
    for line, told_of in (("", ""), ("--seeds 1", ""), ("--seeds 0", ""), ("--set precision=32-true", told)):
        assert study_run.main(["plan", "s.json", *where, *line.split()]) == (2 if told_of else 0)
        assert told_of in capsys.readouterr().err


def test_a_seed_may_have_its_own_precision(finished):
    study = settings.studies(study_in(finished[0], seeds=[0, 1], precisions={1: "bf16-mixed"}))[0]
    assert settings.parameters(study, "table1_01", 1)["precision"] == "bf16-mixed"
    assert "precision" not in settings.parameters(study, "table1_01", 0)


@pytest.mark.parametrize("config, line", [
    (dict(budget=dict(BUDGET, iterations=9)), "holds another run: iterations 8 instead of 9"),
    (dict(rows=["table1_15"]), "row is 'table1_15'; choose from table1_01"),
    (dict(seed=1), "unknown setting 'seed'; choose from study, dataset"),
    (dict(budget=dict(iteration=4)), "unknown parameter 'iteration'; choose from dataset"),
    (dict(data_root="${NOT_SET_ANYWHERE}/camvid"), "expected that environment variable to be set"),
])
def test_a_wrong_study_is_refused_in_a_line(finished, config, line):
    where, target = finished[0] / "runs", "table1"
    with pytest.raises(ValueError, match="(?s).+") as error:
        plan.plan(settings.studies(study_in(where.parent, **config), target), where)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def result(finished):
    folder = finished[0]
    given = settings.parameters(settings.studies(study_in(folder), "table1")[0], "table1_01", 0)
    path = folder / "results" / "tiny" / "table1_01-s0.json"
    collect(folder / "runs" / "tiny" / "table1_01-s0", path, given)
    return path, given


def test_result_holds_what_a_table_needs(result):
    path, given = result
    record = json.loads(path.read_text())
    metrics = json.loads((path.parents[2] / "runs" / "tiny" / "table1_01-s0" / "metrics.json").read_text())
    names = {"config", "versions", "git_commit", "data", "labels", "device", "metrics", "cost", "evaluation", "images"}
    assert names <= set(record)
    assert record["metrics"]["miou"] == metrics["miou"] and record["cost"] == metrics["cost"]
    steps, seconds = (record["cost"][k] for k in ("steps_timed", "seconds_per_step"))
    assert steps == BUDGET["iterations"] and seconds > 0
    assert str(path.parents[2]) not in path.read_text() and not {"runs", "data_root", "name"} & set(record["config"])
    study = Study(path.parent, resamples=20)
    value, draws = study.draws("table1_01", 0)["miou"]
    assert value.item() == pytest.approx(metrics["miou"]) and len(draws) == 20 and draws.std() > 0
    assert path.stat().st_size < 60_000


@pytest.mark.parametrize("name, change, line", [
    ("table1_02-s0", {}, "is tiny/table1_01-s0; expected tiny/table1_02-s0"),
    ("table1_02-s0", dict(name="table1_02-s0"), "has row table1_01; expected table1_02, as its name says"),
    ("table1_01-s0", dict(config=dict(loss="semeda")), "has loss semeda; expected ppce, as its name says"),
    ("table1_01-s1", dict(name="table1_01-s1"), "has seed 0; expected 1, as its name says"),
    ("other-s0", dict(name="other-s0"), "is no ROW-sSEED.json"),
    ("table1_01-s0", dict(val_images=3), "expected 3"),
])
def test_result_that_is_not_what_its_name_says_is_refused(result, name, change, line):
    record = json.loads(result[0].read_text())
    record |= change | dict(config=record["config"] | change.get("config", {}))
    with pytest.raises(InputError) as error:
        plan.check_result(record, "tiny", name)
    assert line in str(error.value)


def test_result_of_another_precision_belongs_to_its_study(result):
    "a processor may only emulate the one of the study"
    path, given = result
    record = json.loads(path.read_text())
    plan.check_result(record | dict(config=record["config"] | dict(precision="bf16-mixed")), "tiny", path.stem, given)


@pytest.mark.parametrize("key, value", [
    ("iterations", 9), ("norm", "l2"), ("reduction", "sum"), ("layers", 3), ("backbone", "resnet50"), ("lr", .5),
    ("network", "smp.Unet"), ("init_weights", "other.pth"), ("edge_net", "voc"),
])
def test_result_of_another_configuration_is_refused(result, diverged, key, value):
    folder = diverged[0]
    of_diverged = settings.parameters(settings.studies(study_in(folder))[0], "diverges", 0)
    for path, given in (result, (folder / "results" / "tiny" / "diverges-s0.json", of_diverged)):
        record = json.loads(path.read_text())
        plan.check_result(record, "tiny", path.stem, given)
        with pytest.raises(InputError, match=f"has {key} {value}; expected"):
            plan.check_result(record | dict(config=record["config"] | {key: value}), "tiny", path.stem, given)


@pytest.mark.parametrize("changes, same", [
    (dict(), True), (dict(min_area=20), False), (dict(split="train"), False), (dict(max_width=1), False),
    (dict(void="label"), False), (dict(final_weights="1"), False),
])
def test_an_evaluation_of_other_settings_is_not_collected(tmp_path, changes, same):
    wanted = dict(final_weights="0", max_width=3, void="ignore")
    (tmp_path / "metrics.json").write_text(json.dumps(dict(config=wanted | changes)))
    assert collected._is_of(tmp_path, wanted) == same


def test_committed_results_are_what_their_names_say():
    found, precisions = list(committed()), {}
    folders = {p.name for p in (ROOT / "results").iterdir() if p.is_dir() and list(p.glob("*-s*.json"))}
    assert {study["study"] for _, study in found} == folders and len(found) > 50
    for path, study in found:
        row, _, seed = path.stem.rpartition("-s")
        known = row in [*study["variants"], *settings.TARGETS["table1"]] and seed.isdecimal()
        given = settings.parameters(study, row, int(seed)) if known else None
        record = json.loads(path.read_text())
        plan.check_result(record, study["study"], path.stem, given)
        precisions.setdefault((path.parent.name, seed), set()).add(record["config"].get("precision", "32-true"))
    mixed = {pair: sorted(names) for pair, names in precisions.items() if len(names) > 1}
    assert not mixed, "rows of a folder are compared with one another, seed by seed"


def test_late_runs_start_where_the_long_ones_end():
    late, long = (Study(ROOT / "results" / name, resamples=2) for name in ("camvid_late", "camvid_long"))
    assert len(late.runs) > 2
    for seed, end in long.runs["table1_01"].items():
        starts = {runs[seed]["initial_weights"] for runs in late.runs.values() if seed in runs}
        assert starts == {end["metrics"]["final_weights"]}


def test_initial_weights_of_each_seed(tmp_path):
    [study] = settings.studies(study_in(tmp_path, init_weights=str(tmp_path / "w-s{seed}.pt")), "table1")
    for seed in (0, 12):
        assert settings.parameters(study, "table1_01", seed)["init_weights"] == str(tmp_path / f"w-s{seed}.pt")


def test_rows_are_named_by_their_loss():
    config = dict(lambdas=[0., .25, 0.], relu="before", norm="l1", reduction="channel_mean")
    assert label_of(config | dict(loss="semeda+smp.DiceLoss")) == "SEMEDA (0, 0.25, 0) before ReLU + Dice"
    assert label_of(config | dict(loss="semeda", norm="l2")) == "SEMEDA (0, 0.25, 0) before ReLU, l2"
    assert label_of(config | dict(loss="smp.LovaszLoss")) == "PPCE + Lovasz"
    assert label_of(TABLE1["table1_05"]) == "PPCE on edges 1"


def test_studies_can_be_run(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMEDA_DATA", str(tmp_path))
    files = sorted(settings.STUDIES.glob("*.yaml"))
    assert files
    for path in files:
        for target in settings.TARGETS:
            studies = settings.studies(settings.read_study(path), target)
            assert plan.plan(studies, tmp_path)[-1].startswith(f"{len(settings.runs(studies))} runs, 0 finished")


def test_table_has_diverged_runs_and_rows_that_were_not_run(result, diverged):
    text = rows_table(dict(tiny=Study(result[0].parent, resamples=20)))
    assert re.search(r"\| PPCE, lr 1000000.0 +\| +\| +\| diverged \| +diverged \| +diverged \| 1, 1 diverged \|", text)
    assert re.search(r"\| SEMEDA \(0, 1, 0\) before ReLU +\| +66.6 \| +\+2.5 \| +not run \|", text)


def test_pack_keeps_counts():
    counts = torch.randint(0, 2**31 - 1, (3, 4, 3, 5), dtype=torch.int32)
    counts[1:] %= 300
    assert torch.equal(unpack(json.loads(json.dumps(pack(counts)))), counts)


def test_interval_of_one_seed_is_the_paired_bootstrap():
    a = torch.randint(0, 30, (20, 3, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    a[:, :, 1:] += 30
    b = a.clone()
    b[:, :, 0] = (b[:, :, 0] * 1.2).int()
    study = fake_study({("x", 0): a, ("y", 0): b})
    expected = paired_bootstrap(a, b, resamples=200)
    assert study.difference("x", "y", "miou") == pytest.approx([v.item() for v in expected["miou"]])
    assert study.difference("x", "y", "boundary", 2) == pytest.approx([v[1].item() for v in expected["boundary"]])
    assert study.difference("x", "y", "boundary", 99) is None # a width that was not evaluated
    assert study.difference("x", "x", "miou") == (0, 0, 0) and study.difference("x", "z", "miou") is None


def fake_study(counts):
    study = Study.__new__(Study)
    study.resamples, study._draws, study.runs, study.diverged = 200, {}, {}, {}
    for (row, seed), c in counts.items():
        study.runs.setdefault(row, {})[seed] = dict(counts=c, images={})
    return study


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_images", [.05, .3, 2.])
def test_interval_covers_the_truth_nineteen_times_in_twenty(seeds, of_images):
    "Differences around 0 that vary with the seed by 1 and with the images by a known part of it"
    generator, trials, covered = torch.Generator().manual_seed(0), 400, 0
    for _ in range(trials):
        values = torch.randn(seeds, generator=generator) + of_images * torch.randn(1, generator=generator)
        mean, low, high = over_seeds_and_images(values, values + of_images * torch.randn(500, 1, generator=generator))
        assert mean.item() == pytest.approx(values.mean().item())
        covered += (low < 0 < high).item()
    assert .93 <= covered / trials <= .985


@pytest.mark.parametrize("seeds, draws", [(2, 500), (3, 500), (3, 2000), (5, 2000)])
def test_interval_over_seeds_is_students(seeds, draws):
    "On images that change nothing, whatever the order of the draws"
    from scipy import stats
    values = torch.arange(seeds, dtype=torch.double)
    half = stats.t.ppf(.975, seeds - 1) * values.std().item() / seeds ** .5
    for seed in range(3):
        mean, low, high = over_seeds_and_images(values, values.expand(draws, seeds), seed=seed)
        ends = [mean.item() - half, mean.item() + half]
        assert [low.item(), high.item()] == pytest.approx(ends, abs=.05 * half) # of 500 draws; of 2,000 it is .01


def test_claim_on_runs_that_diverged():
    generator = torch.Generator().manual_seed(0)
    def counts():
        found = torch.randint(1, 30, (20, 3, 3, 4), generator=generator, dtype=torch.int32)
        return found + torch.tensor([0, 30, 30]).view(3, 1, 1).int()
    seeds = dict(table1_01=3, table1_02=1, table1_09=3)
    study = fake_study({(row, seed): counts() for row, n in seeds.items() for seed in range(n)})
    study.diverged = dict(table1_02={1: {}, 2: {}}, table1_11={0: {}, 1: {}, 2: {}}, table1_12={0: {}})
    figure, result = claim(study, "table1_01", "table1_02", "miou", sign=-1, limit=.01, if_diverged="holds")
    assert figure.endswith("; 2 of 3 runs of Ubernet 1 diverged") and result == "holds: diverges"
    told = "3 of 3 runs of SEMEDA (0, 1, 0) before ReLU diverged"
    assert claim(study, "table1_01", "table1_11", "miou") == (told, "does not: diverges")
    assert claim(study, "table1_11", "table1_09", "miou")[1] == "holds: diverges"
    assert claim(study, "table1_02", "table1_11", "miou")[1] == "not tested here: both diverge"
    assert claim(study, "table1_01", "table1_12", "miou")[1] == "not tested here: 1 seed, expected 3"
    assert claim(study, "table1_01", "table1_13", "miou") == ("not run", "not tested here")


def test_verdict():
    assert verdict((.01, .002, .02), 3) == "holds" and verdict((.01, .002, .02), 3, -1) == "does not: the opposite"
    assert verdict((.01, -.002, .02), 3) == "does not: the interval includes 0"
    assert verdict((.004, .002, .006), 3, -1, .01) == "holds"
    assert verdict((.004, .002, .02), 3, -1, .01) == "does not: the interval includes 1"
    assert verdict((.01, .002, .02), 1).startswith("not tested here: 1 seed") and verdict(None, 0) == "not tested here"
