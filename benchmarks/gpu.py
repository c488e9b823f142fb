"""Run everything of ours that needs a GPU, within a number of minutes, and write one JSON file.

    python benchmarks/gpu.py --minutes 8 --out docs/gpu.json
    python benchmarks/gpu_page.py docs/gpu.json

All visible CUDA GPUs are used. Nothing is downloaded: models have random weights and rows are random tokens. Parts, in
this order: the tests marked `gpu`; training steps in turns, as ratios to plain Trainer (`step_time.py`), `run="int8"`
beside the dense model, and peak memory; DDP and FSDP2 on all GPUs; the steps again under `torch_compile`. Each part is
a process of its own with a share of the time. The file is written again after every result, so an interrupted run
keeps what was measured, and every cell that was left out says why. The second command puts the file into the pages.
With `--device cpu --quick` everything runs in tiny shapes on the CPU, to try the script.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHAPES: dict[str, dict[str, int]] = {
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
    "bert-base": {},
}
TINY = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
        "max_position_embeddings": 32,
    }
}
PRECISIONS = ("fp32", "bf16")
WAYS = ("DDP", "FSDP2")
TESTS = ("tests", "tests of two GPUs")
# Without it, everything but the tests and the cached teacher still runs.
SPARED = "datasets"
FOR_TESTS = ("pytest", "pytest-timeout", "beartype", "hypothesis", SPARED)
# The share of the time that a part may take, and the seconds within which it ends after its time is over.
SHARES = {"tests": 0.2, "tests of two GPUs": 0.15, "eager": 0.45, "DDP": 0.5, "FSDP2": 0.5, "compiled": 1.0}
GRACE = 10.0
LINE = re.compile(r"(tests/\S+\.py::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b")


def shapes(quick: bool) -> dict[str, dict[str, int]]:
    return TINY if quick else SHAPES


def planned(part: str, quick: bool) -> list[dict[str, Any]]:
    """Return what a part measures, in order: cells without state and result."""
    both = [(shape, precision) for precision in PRECISIONS[::-1] for shape in shapes(quick)]
    if part in TESTS:
        return []
    if part in WAYS:
        return [{"what": "processes", "way": part, "shape": list(shapes(quick))[-1], "precision": "bf16"}]
    steps = [
        {"what": "steps", "shape": shape, "precision": precision, "compiled": part == "compiled"}
        for shape, precision in both
    ]
    if part == "compiled":
        return steps
    memory = [{"what": "memory", "shape": shape, "precision": precision} for shape, precision in both]
    return steps + [{"what": "int8", "shape": shape} for shape in shapes(quick)] + memory


def missing() -> list[str]:
    """Return the packages that hf_compress declares, or its tests need, and that are not installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = [re.split(r"[\s>=<\[;!~]", requirement)[0] for requirement in declared]
    return [name for name in dict.fromkeys([*names, *FOR_TESTS]) if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Day:
    """The results so far, the time that is left, and the file that both are written to.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        self.until = self.began + 60 * options.minutes
        self.lacking = missing()
        self.results: dict[str, Any] = {
            "schema": SCHEMA,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": _git("rev-parse", "HEAD"),
            "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
            "minutes": options.minutes,
            "quick": options.quick,
            "missing": self.lacking,
            "machine": {},
            "versions": {},
            "tests": {"state": "skipped", "why": "not begun", "outcomes": {}},
            "cells": [
                cell | {"state": "skipped", "why": "not begun"}
                for part in SHARES
                for cell in planned(part, options.quick)
            ],
        }

    def left(self) -> float:
        return self.until - time.monotonic()

    def write(self) -> None:
        self.results["seconds"] = round(time.monotonic() - self.began)
        partial = self.options.out.with_name(self.options.out.name + ".partial")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.options.out)

    def take(self, found: dict[str, Any]) -> None:
        """Put a result, or what is known of the machine, in its place."""
        if "what" not in found:
            self.results |= found
            return
        for cell in self.results["cells"]:
            if _key(cell) == _key(found):
                cell.pop("why", None)
                cell.update(found)

    def explain(self, part: str, why: str) -> None:
        """Say why the cells of a part that were not measured are missing."""
        keys = [_key(cell) for cell in planned(part, self.options.quick)]
        if part == TESTS[0]:
            self.results["tests"]["why"] = why
        for cell in self.results["cells"]:
            if _key(cell) in keys and cell.get("why") == "not begun":
                cell["why"] = why

    def run_part(self, part: str) -> None:
        """Run a part in a process of its own, and take its results as they come."""
        if part == TESTS[1] and self.options.gpus < 2:
            return
        needed = [name for name in self.lacking if part in TESTS or name not in FOR_TESTS]
        seconds = SHARES[part] * self.left() - GRACE
        if needed:
            why = f"not installed: {', '.join(needed)}"
        elif part == "FSDP2" and self.options.device == "cpu":
            why = "accelerate enters FSDP on accelerators only"
        elif seconds <= 0:
            why = "no time left"
        else:
            why = self._watch(part, seconds)
        if part in TESTS:
            tests = self.results["tests"]
            # Of the second run all is well only if it was after the first.
            tests["why"] = why or ("" if part == TESTS[0] else tests["why"])
            tests["state"] = "skipped" if not tests["outcomes"] else "cut" if tests["why"] else "done"
        else:
            self.explain(part, why or "no time left")
        self.write()
        print(f"{part}: {why or 'done'}, {self.left():.0f} s left", flush=True)

    def _watch(self, part: str, seconds: float) -> str:
        """Run the process of a part; return why it did not end well, or nothing."""
        with tempfile.TemporaryDirectory() as folder:
            lines, log = Path(folder, "lines"), Path(folder, "log")
            lines.touch()
            command = _command(part, self.options, lines, seconds)
            environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
            if self.options.gpus > 1 and part in (TESTS[0], "eager", "compiled"):
                # Trainer would use all GPUs in one process.
                environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            end, at, why = time.monotonic() + seconds + GRACE, 0, ""
            with log.open("w") as output:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
                )
                try:
                    while process.poll() is None and time.monotonic() < end:
                        at = self._collect(part, log if part in TESTS else lines, at)
                        time.sleep(0.2)
                finally:
                    if process.poll() is None:
                        why = "no time left"
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    self._collect(part, log if part in TESTS else lines, at)
            # pytest's 1 says that tests failed, and 5 that there are none.
            if not why and process.returncode not in ((0, 1) if part in TESTS else (0,)):
                said = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
                why = f"the process ended with status {process.returncode}: {said[0][:300]}"
                print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            return why

    def _collect(self, part: str, file: Path, at: int) -> int:
        """Take the whole lines after byte `at`, and return where the next one begins."""
        with file.open("rb") as stream:
            stream.seek(at)
            new = stream.read()
        new = new[: new.rfind(b"\n") + 1]
        for line in new.decode(errors="replace").splitlines():
            if part in TESTS:
                if found := LINE.match(line):
                    self.results["tests"]["outcomes"][found[1]] = found[2].lower()
            else:
                self.take(json.loads(line))
        if new:
            self.write()
        return at + len(new)


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell.get(name) for name in ("what", "way", "shape", "precision", "compiled"))


def _git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _command(part: str, options: argparse.Namespace, lines: Path, seconds: float) -> list[str]:
    if part in TESTS:
        marked = "gpu" if part == TESTS[0] else "gpu(count=2)"
        words = ["-m", "pytest", "-m", marked, "-v", "-p", "no:cacheprovider", "--color=no", *options.tests]
        return [sys.executable, *words]
    script = [str(HERE / "gpu_parts.py"), part, "--lines", str(lines), "--seconds", f"{seconds:.0f}"]
    script += ["--device", options.device] + ["--quick"] * options.quick
    if part in WAYS:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        return [sys.executable, *launcher, "2" if options.device == "cpu" else "gpu", *script]
    return [sys.executable, *script]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file to write (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), help="parts to run (all)")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="where to look for tests (%(default)s)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the script")
    options = parser.parse_args()
    options.gpus = 0
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no CUDA GPU here. Try the script with `--device cpu --quick`.")
        options.gpus = torch.cuda.device_count()
    day = Day(options)
    if day.lacking:
        print(
            f"Not installed: {', '.join(day.lacking)}. Parts that need them are left out. To get them:\n"
            f"    {sys.executable} -m pip install {' '.join(day.lacking)}",
            flush=True,
        )
    for part in SHARES:
        if part in options.parts:
            day.run_part(part)
        else:
            day.explain(part, "left out by --parts")
    day.write()
    print(f"Written to {options.out}")


if __name__ == "__main__":
    main()
