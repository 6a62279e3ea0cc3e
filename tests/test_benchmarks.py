"""The benchmarks at tiny sizes: that what they compare is the same, and what they write. Never how long it takes."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import edge_maps, loss, pipeline, step, throughput, timing, trimap
from semeda.edges import edge_map
from semeda.metrics import boundary_iou_counts

from .test_edges import brute_edges


@pytest.fixture(autouse=True)
def settings_as_they_were():
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = deterministic


def quick(module, folder, *more):
    "The benchmark's result at tiny sizes"
    assert module.main(["--quick", "--out", str(folder), *more]) == 0
    name = module.__name__.rpartition(".")[2]
    assert [p.name for p in folder.iterdir()] == [f"{name}-cpu.json"]
    record = json.loads((folder / f"{name}-cpu.json").read_text())
    assert (record["benchmark"], record["device"], record["quick"]) == (name, "cpu", True)
    assert record["processor"] and record["versions"]["torch"] == torch.__version__.partition("+")[0] and record["cpu_threads"] >= 1 and "git_commit" in record
    assert not any(str(folder) in str(v) for v in record.values())
    for row in record["rows"]:
        assert (row["q1"] <= row["ms"] <= row["q3"] and row["rounds"] == 2 and row["ratio"] > 0) if row["ms"] is not None else row["note"]
    return record


def ways(record):
    return {row["way"] for row in record["rows"] if row["ms"] is not None}


def test_loss(tmp_path):
    record = quick(loss, tmp_path)
    assert {"PPCE", "SEMEDA", "SEMEDA, eq. 6 written out", "SEMEDA, eq. 6, all layers"} <= ways(record)
    assert all(row["extra_mib"] > 0 and row["floor_ms"] > 0 for row in record["rows"])
    assert record["about"]["rates"]["macs_per_second"] > 0 and record["about"]["rates"]["bytes_per_second"] > 0


def test_losses_that_differ_are_noticed():
    logits, labels = torch.randn(1, 11, 9, 8, requires_grad=True), timing.regions((1, 9, 8), 11, void=True).long()
    found = loss.losses(11, "cpu")
    loss.check(found, logits, labels)
    ours = found["SEMEDA"]
    with pytest.raises(AssertionError, match="eq. 6 written out differs"):
        loss.check(found | {"SEMEDA, eq. 6 written out": lambda x, y: 1.01 * ours(x, y)}, logits, labels)


def test_step(tmp_path):
    record = quick(step, tmp_path)
    assert ways(record) == {"PPCE", "PPCE + SEMEDA"} and record["about"]["batch"] == 1
    assert all(row["floor_ms"] > 0 and row["case"].endswith("float32, eager") for row in record["rows"])


def test_edge_maps(tmp_path):
    record = quick(edge_maps, tmp_path)
    assert {"semeda edge_map", "SciPy maximum != minimum filter", "copy of the labels"} <= ways(record)
    assert {row["case"].rpartition(", ")[2] for row in record["rows"]} == {"1 thread", "2 threads"}


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize("shape", [(2, 2), (1, 7), (9, 1), (12, 17)])
def test_rivals_make_our_edge_map(shape, void):
    labels = np.random.default_rng(0).choice([0, 0, 0, 1, 2, 255] if void else [0, 0, 0, 1, 2], shape).astype(np.uint8)
    made, _, _ = edge_maps.ways_of(torch.from_numpy(labels), void, "cpu")
    edge_maps.check(made)
    assert np.array_equal(made[edge_maps.OURS]().numpy(), brute_edges(labels, "ignore"))
    with pytest.raises(AssertionError, match="gives another edge map"):
        edge_maps.check(made | {"another": lambda: 1 - edge_map(torch.from_numpy(labels))})


def test_pipeline(tmp_path):
    record = quick(pipeline, tmp_path, "--workers", "0")
    loops = [row for row in record["rows"] if row["way"].startswith("loop")]
    assert len(loops) == 2 and all(0 < row["waiting"] < 1 for row in loops)
    assert all(row["images_per_second"] > 0 for row in record["rows"])


@pytest.mark.filterwarnings("ignore:`smp.utils`:DeprecationWarning", "ignore::UserWarning:lightning", "ignore:`isinstance.treespec")
def test_throughput(tmp_path):
    record = quick(throughput, tmp_path)
    assert {throughput.OURS, throughput.PLAIN, throughput.FLOOR} <= ways(record)
    assert {row["way"] for row in record["rows"]} == {throughput.OURS, throughput.PLAIN, throughput.FLOOR, throughput.SMP, throughput.LIGHTNING}


def test_erosions_count_boundary_iou():
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'semeda[bench]'")
    labels = timing.regions((30, 45), 3, void=True)
    predictions = timing.regions((30, 45), 3, seed=1)
    counts = trimap.erosions(3)(predictions, labels)
    for w in trimap.WIDTHS:
        assert np.array_equal(counts[w - 1], boundary_iou_counts(predictions, labels, 3, w, void="label").numpy())


def test_turns_rotate_and_ratios_are_within_a_round():
    args, calls = timing.parse(timing.parser("x", "", 4, 60.), []), []
    def way(name, seconds):
        def run():
            calls.append(name)
            return seconds * (1 + calls.count(name))
        return run
    times = timing.take_turns(dict(a=way("a", .001), b=way("b", .002)), args, warm=1)
    assert calls == ["a", "b", *"abbaabba"] and times["a"] == pytest.approx([3, 4, 5, 6])
    a, b = timing.rows_of("case", times, "a", dict(b=5.))
    assert (a["ratio"], b["ratio"], b["ms"], b["q1"], b["rounds"]) == pytest.approx((1, 2, 9, 7.5, 4)) and b["times_floor"] == pytest.approx(1.8) and "times_floor" not in a


def test_a_turn_of_several_calls_counts_their_median():
    took = iter([9., 1., 2., 3., 8., 5., 4.]) # the first to warm up
    assert timing.take_turns(dict(a=lambda: next(took)), timing.parse(timing.parser("x", "", 2, 60.), []), warm=1, calls=3)["a"] == [2000, 5000]


def test_peak_of_memory_counts_live_tensors():
    x = torch.randn(256, 1024)
    assert timing.peak_extra(lambda: x + 1, "cpu") == pytest.approx(2**20, abs=4096)
    assert timing.peak_extra(lambda: ((x + 1) * 2).sum(), "cpu") == pytest.approx(2 * 2**20, abs=4096)


def test_a_quick_look_writes_nothing_unless_told_where(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    edge_maps.main(["--quick"])
    assert not list(tmp_path.iterdir())


def test_command(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(command.subprocess, "run", lambda line: seen.append(line[2:]) or subprocess.CompletedProcess(line, "benchmarks.step" in line))
    assert command.main(["loss", "step", "--quick"]) == 1
    assert seen == [["benchmarks.loss", "--device", "cpu", "--quick"], ["benchmarks.step", "--device", "cpu", "--quick"]] and "failed: step" in capsys.readouterr().err
    seen.clear()
    command.main(["--device", "cuda", "--out", "folder"])
    assert [line[0].rpartition(".")[2] for line in seen] == [n for n in command.NAMES if n != "trimap"] and seen[0][1:] == ["--device", "cuda", "--out", "folder"]
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "benchmark is 'speed'; choose from edge_maps, loss" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_no_gpu(capsys):
    with pytest.raises(SystemExit):
        loss.main(["--device", "cuda"])
    assert "this torch finds no GPU; expected --device cpu" in capsys.readouterr().err


def test_names_are_files():
    assert all(f"benchmarks.{name}" in sys.modules for name in command.NAMES)
