"""All benchmarks, or some of them, one after another.

    python -m benchmarks [NAME ...] [--device cuda] [--quick] [--out FOLDER] [--data-root CAMVID] [--threads N]

Each is a file of this folder and runs in a process of its own; what is not known here is handed on to it.
`python -m benchmarks.NAME --help` says what it measures and which options it has. Results go to results/bench/NAME-DEVICE.json.
"""
import argparse
import subprocess
import sys
import time

NAMES = ("edge_maps", "loss", "step", "pipeline", "throughput", "trimap")
CPU_ALONE = ("trimap",)


def main(argv=None):
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} [all that the device has]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args, rest = parser.parse_known_args(argv)
    for name in args.names:
        if name not in NAMES: parser.error(f"benchmark is {name!r}; choose from {', '.join(NAMES)}")
    failed = []
    for name in args.names or [n for n in NAMES if args.device == "cpu" or n not in CPU_ALONE]:
        start = time.perf_counter()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--device", args.device, *rest]).returncode: failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if failed: print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__": sys.exit(main())
