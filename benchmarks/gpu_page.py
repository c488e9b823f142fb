"""Put the results of `gpu.py` into docs/guarantees.md and docs/benchmarks.md, between their marks.

    python benchmarks/gpu_page.py docs/gpu.json

Without a file the pages say that nothing was run. Results of `--quick` or of a CPU are refused.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu import ROOT, SCHEMA

COMMAND = """\
```bash
python benchmarks/gpu.py --minutes 8 --out docs/gpu.json
python benchmarks/gpu_page.py docs/gpu.json
```"""
Results = Mapping[str, Any] | None


def read(path: Path) -> dict[str, Any]:
    """Return the results in a file.

    Raises:
        ValueError: it was written by another version of `gpu.py`, or to try the script.
    """
    results: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if results.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} must have schema {SCHEMA}; got {results.get('schema')}. Run benchmarks/gpu.py again."
        )
    if results["quick"] or not results["machine"].get("gpus"):
        raise ValueError(
            f"{path} must hold results of a GPU in full shapes; got `quick` {results['quick']} and the GPUs "
            f"{results['machine'].get('gpus', [])}. Run benchmarks/gpu.py on a machine with a GPU, without `--quick`."
        )
    return results


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ratio(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def setting(results: Mapping[str, Any]) -> str:
    """Return machine, versions and commit in a sentence."""
    gpus = results["machine"]["gpus"]
    names = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "transformers"))
    changed = " with changes" if results["changed"] else ""
    return f"{names}; {versions}; commit {results['commit'][:7]}{changed}; {results['date']}"


def guarantees(results: Results) -> str:
    """Return the section of the tests that need a GPU."""
    if results is None:
        return f"**Not run.** No test marked *GPU* has run yet. To run them on a machine with one:\n\n{COMMAND}"
    tests = results["tests"]
    outcomes = list(tests["outcomes"].values())
    counts = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes)) or "none"
    said = f"{setting(results)}: {counts}."
    if tests["state"] != "done":
        said += f" **Not all ran**: {tests['why']}."
    rows = [[f"`{name}`", word] for name, word in tests["outcomes"].items()]
    return "\n\n".join([said, COMMAND, *([table(["test", "outcome"], rows)] if rows else [])])


def benchmarks(results: Results) -> str:
    """Return the section of speed and memory on a GPU."""
    if results is None:
        return f"**Not run.** Nothing was measured on a GPU yet. To measure it within eight minutes:\n\n{COMMAND}"
    parts = [f"{setting(results)}. Random weights, random tokens. In brackets: 95 % intervals of the median.", COMMAND]
    for what, render in SECTIONS.items():
        cells = [cell for cell in results["cells"] if cell["what"] == what]
        parts += list(render([cell for cell in cells if cell.get("result")]))
        parts += [_left_out(cells)] if any(cell["state"] != "done" for cell in cells) else []
    return "\n\n".join(parts)


def _left_out(cells: list[dict[str, Any]]) -> str:
    lines = [f"- **{cell['state']}**: {_named(cell)}: {cell['why']}" for cell in cells if cell["state"] != "done"]
    return "\n".join(lines)


def _named(cell: Mapping[str, Any]) -> str:
    words = [cell["what"], cell.get("way"), cell["shape"], cell.get("precision")]
    return ", ".join([word for word in words if word] + ["compiled"] * bool(cell.get("compiled")))


def _steps(cells: list[dict[str, Any]]) -> Iterator[str]:
    if not cells:
        return
    yield "The time of a training step as a ratio to plain `Trainer`, 32 rows of 128 tokens, variants in turns:"
    names = list(dict.fromkeys(name for cell in cells for name in cell["result"]["ratios"]))
    rows = []
    for cell in cells:
        result = cell["result"]
        found = [ratio(result["ratios"][name]) if name in result["ratios"] else "" for name in names]
        kind = f"{cell['shape']}, {cell['precision']}" + ", compiled" * cell["compiled"]
        rows.append([kind, str(result["rounds"]), f"{1e3 * result['plain_seconds']:.1f} ms", *found])
    yield table(["model", "rounds", "plain", *names], rows)


def _int8(cells: list[dict[str, Any]]) -> Iterator[str]:
    if not cells:
        return
    yield 'Speed of inference relative to fp32. int8 is `run="int8"` of a compressed file:'
    rows = [
        [cell["shape"], shape, ratio(found["bf16"]), ratio(found["int8"])]
        for cell in cells
        for shape, found in cell["result"]["speed"].items()
    ]
    yield table(["model", "batch", "bf16", "int8"], rows)


def _memory(cells: list[dict[str, Any]]) -> Iterator[str]:
    if not cells:
        return
    yield "Peak memory of a training, MB:"
    names = list(dict.fromkeys(name for cell in cells for name in cell["result"]["bytes"]))
    rows = [
        [f"{cell['shape']}, {cell['precision']}", *(_megabytes(cell["result"]["bytes"].get(name)) for name in names)]
        for cell in cells
    ]
    yield table(["model", *names], rows)


def _processes(cells: list[dict[str, Any]]) -> Iterator[str]:
    if not cells:
        return
    yield "One process for each GPU. Steps of trainings that follow each other, as a ratio to plain `Trainer`:"
    rows = []
    for cell in cells:
        result = cell["result"]
        names = ("control", "all three")
        memory = [_megabytes(result["bytes"].get(name)) for name in ("plain", "all three")]
        found = [ratio(result["ratios"][name]) for name in names]
        model = f"{cell['way']}, {cell['shape']}, {cell['precision']}"
        rows.append([model, str(result["processes"]), str(result["steps"]), *found, *memory])
    yield table(["", "GPUs", "steps", "control", "all three", "plain, MB", "all three, MB"], rows)


SECTIONS: dict[str, Callable[[list[dict[str, Any]]], Iterator[str]]] = {
    "steps": _steps,
    "int8": _int8,
    "memory": _memory,
    "processes": _processes,
}
PAGES: dict[str, Callable[[Results], str]] = {"docs/guarantees.md": guarantees, "docs/benchmarks.md": benchmarks}


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f}"


def filled(page: str, content: str) -> str:
    """Return the page with `content` between its marks.

    Raises:
        ValueError: it has not exactly one pair of marks.
    """
    pattern = re.compile(r"(<!-- gpu: begin -->)\n.*?(<!-- gpu: end -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(
            "The page must have `<!-- gpu: begin -->` and `<!-- gpu: end -->` once, on lines of their own."
        )
    return pattern.sub(lambda marks: f"{marks[1]}\n{content}\n{marks[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="what gpu.py wrote; without it, nothing was run")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages (docs)")
    options = parser.parse_args()
    results = None if options.results is None else read(options.results)
    for name, render in PAGES.items():
        path = options.docs / Path(name).name
        path.write_text(filled(path.read_text("utf-8"), render(results)), "utf-8")


if __name__ == "__main__":
    main()
