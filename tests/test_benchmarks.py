"""The benchmarks at tiny sizes: that what they compare is the same, and what they write. Never how long it takes."""
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import edge_maps, loss, losses, pipeline, step, throughput, timing, trimap
from semeda.edges import edge_map
from semeda.metrics import boundary_iou_counts

from .test_edges import brute_edges


@pytest.fixture(autouse=True)
def settings_as_they_were():
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = deterministic


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


def quick(module, folder, *more, device="cpu"):
    "The benchmark's result at tiny sizes"
    assert module.main(["--quick", "--device", device, "--out", str(folder), *more]) == 0
    name = module.__name__.rpartition(".")[2]
    assert [p.name for p in folder.iterdir()] == [f"{name}-{device}.json"]
    record = json.loads((folder / f"{name}-{device}.json").read_text())
    assert (record["benchmark"], record["device"], record["quick"]) == (name, device, True) and record["arguments"][
        "rounds"
    ] == 2
    assert (
        record["processor"]
        and record["versions"]["torch"] == torch.__version__.partition("+")[0]
        and record["cpu_threads"] >= 1
        and "git_commit" in record
    )
    assert not any(str(folder) in str(v) for v in record.values())
    for row in record["rows"]:
        assert (
            (row["q1"] <= row["ms"] <= row["q3"] and row["rounds"] == 2 and row["ratio"] > 0)
            if row["ms"] is not None
            else row["note"]
        )
    return record


def ways(record):
    return {row["way"] for row in record["rows"] if row["ms"] is not None}


@devices
def test_loss(tmp_path, device):
    record = quick(loss, tmp_path, device=device)
    assert {"PPCE", "SEMEDA", "SEMEDA, eq. 6 written out", "SEMEDA, eq. 6, all layers"} <= ways(record)
    assert all(row["extra_mib"] > 0 and row["floor_ms"] > 0 for row in record["rows"])
    assert record["about"]["rates"]["macs_per_second"] > 0 and record["about"]["rates"]["bytes_per_second"] > 0


def test_losses_that_differ_are_noticed():
    logits, labels = torch.randn(1, 11, 9, 8, requires_grad=True), timing.regions((1, 9, 8), 11, void=True).long()
    found = loss.losses(11, "cpu", torch.float64)
    loss.check(found, logits, labels)
    ours = found["SEMEDA"]
    with pytest.raises(AssertionError, match="eq. 6 written out differs"):
        loss.check(found | {"SEMEDA, eq. 6 written out": lambda x, y: (1 + 1e-8) * ours(x, y)}, logits, labels)


@devices
def test_every_loss(tmp_path, device, monkeypatch):
    names = ("ppce", "ubernet", "semeda", "edge_iou")
    monkeypatch.setattr(losses, "LOSSES", {name: losses.LOSSES[name] for name in names})
    record = quick(losses, tmp_path, "--losses", "semeda+edge_iou(weight=2)", device=device)
    assert ways(record) == {"PPCE", "SEMEDA", "PPCE + edge IoU", "SEMEDA + edge IoU (weight 2)"}
    assert {row["case"].partition(",")[0] for row in record["rows"]} == {"alone", "step"}
    assert all(row["extra_mib"] > 0 for row in record["rows"] if row["ms"] is not None)
    assert {row["note"] for row in record["rows"] if row["way"] == "Ubernet"} == {"needs an edge head"}


@devices
def test_step(tmp_path, device):
    record = quick(step, tmp_path, "--batch", "1", "--precisions", "float32", "--no-compile", device=device)
    assert ways(record) == {"PPCE", "PPCE + SEMEDA"} and record["about"]["batch"] == 1
    assert all(
        row["floor_ms"] > 0 and row["extra_mib"] > 0 and "float32" in row["case"] and row["case"].endswith("eager")
        for row in record["rows"]
    )


def test_step_with_channels_last(tmp_path):
    cases = [row["case"].rpartition(", ")[2] for row in quick(step, tmp_path, "--channels-last")["rows"]]
    assert cases == ["eager", "eager", "channels last", "channels last"]


def test_compiled_step_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    assert {row["case"].rpartition(", ")[2] for row in quick(step, tmp_path, "--compile")["rows"]} == {
        "eager",
        "compiled",
    }
    monkeypatch.setattr(torch, "compile", lambda module: (lambda *x: 1.1 * module(*x)))
    with pytest.raises(AssertionError, match="compiled, differs from eager"):
        step.main(["--quick", "--compile"])


def test_multiply_adds_inside_the_image():
    conv, x = torch.nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), torch.ones(3, 4, 9, 12)
    with torch.no_grad():
        conv.weight.fill_(1)
        conv.bias.zero_()
        out = conv(x)
    assert step.macs_inside(conv, x, out) == out.sum().item() # of ones each multiply-add gives one


def test_weights_that_are_not_finite_are_noticed():
    steps = step.Step("resnet18", "float32", 1, 33, "cpu")
    steps.ways(False)["PPCE"]()
    steps.check_finite()
    next(iter(steps.net.head.parameters())).data[0] = float("nan")
    with pytest.raises(AssertionError, match="not finite"):
        steps.check_finite()


@needs_gpu
@pytest.mark.parametrize("module", [edge_maps, pipeline, throughput])
def test_on_a_gpu(tmp_path, module):
    quick(module, tmp_path, device="cuda")


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


def test_batches_that_were_loaded_before_are_not_timed(tmp_path):
    found = pipeline.Pipeline("scenes", "cpu", str(tmp_path), crop=16, batch_size=2)
    found.crops = Slow()
    for seconds in (found.load(2, 4), found.loop(2, lambda logits, labels: logits.sum(), 4)[0]):
        assert seconds > .5 * Slow.SECONDS # two crops a batch, two workers; from the store they take next to nothing


class Slow(torch.utils.data.Dataset):
    SECONDS = .05

    def __len__(self):
        return 1000

    def __getitem__(self, i):
        time.sleep(self.SECONDS)
        return torch.zeros(3, 16, 16), torch.zeros(16, 16, dtype=torch.long)


@pytest.mark.filterwarnings(
    "ignore:`smp.utils`:DeprecationWarning", "ignore::UserWarning:lightning", "ignore:`isinstance.treespec"
)
def test_throughput(tmp_path):
    record = quick(throughput, tmp_path)
    assert {throughput.OURS, throughput.PLAIN, throughput.FLOOR} <= ways(record)
    assert {row["way"] for row in record["rows"]} == {
        throughput.OURS,
        throughput.PLAIN,
        throughput.FLOOR,
        throughput.SMP,
        throughput.LIGHTNING,
    }


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
    assert (
        (a["ratio"], b["ratio"], b["ms"], b["q1"], b["rounds"]) == pytest.approx((1, 2, 9, 7.5, 4))
        and b["times_floor"] == pytest.approx(1.8)
        and "times_floor" not in a
    )


def test_a_turn_of_several_calls_counts_their_median():
    took = iter([9., 1., 2., 3., 8., 5., 4.])  # the first to warm up
    assert timing.take_turns(
        dict(a=lambda: next(took)), timing.parse(timing.parser("x", "", 2, 60.0), []), warm=1, calls=3
    )["a"] == [2000, 5000]


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
    monkeypatch.setattr(
        command.subprocess,
        "run",
        lambda line: seen.append(line[2:]) or subprocess.CompletedProcess(line, "benchmarks.step" in line),
    )
    assert command.main(["loss", "step", "--quick"]) == 1
    assert (
        seen == [["benchmarks.loss", "--device", "cpu", "--quick"], ["benchmarks.step", "--device", "cpu", "--quick"]]
        and "failed: step" in capsys.readouterr().err
    )
    seen.clear()
    command.main(["--device", "cuda", "--out", "folder"])
    assert [line[0].rpartition(".")[2] for line in seen] == [n for n in command.NAMES if n != "trimap"] and seen[0][
        1:
    ] == ["--device", "cuda", "--out", "folder"]
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
