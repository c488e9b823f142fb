"""The measurements of a study's cells, read from files of results and checked."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import zstandard

from hf_compress.report import records
from hf_compress.study.analysis.measurement import (
    DEV,
    EXTRA,
    FIELDS,
    OPTIONAL,
    Measurement,
    on_one_set,
    standard_error,
)
from hf_compress.study.grid.answers import Answers
from hf_compress.study.grid.combinations import COMBINATIONS, methods_in

PAPER = "paper"
MAIN = "main"
METRICS = (PAPER, MAIN)
ENDINGS = (".jsonl", ".jsonl.zst", ".csv")
SELF = "self"


def read_measurements(source: str | Path | Sequence[str | Path], metric: str = PAPER) -> list[Measurement]:
    """Read the measurements in files of results, ordered by model, task, combination, sparsity and seed.

    The scores of a task are those on its second evaluation set if all its cells have one, else on the dev split.

    Args:
        source: one or several of: a file of results (`.jsonl`, `.jsonl.zst`), a table of cells from a report (`.csv`),
            the folder of a study, a folder with files of results. A cell in two of them counts once.
        metric: "paper" takes accuracy where a task reports it, as the paper's means do; "main" takes the main
            metric of each task (Matthews' correlation for CoLA).

    Raises:
        ValueError: there are no results, a line is not a result, or two results are of the same cell.

    Example:
        >>> from hf_compress.study.analysis import read_measurements
        >>> from hf_compress.study.report.advice import shipped
        >>> len(read_measurements(shipped()))
        120
    """
    if metric not in METRICS:
        raise ValueError(f"`--metric` must be one of {', '.join(METRICS)}; got {metric!r}.")
    paths = [Path(each) for each in ([source] if isinstance(source, str | Path) else source)]
    found = [measurement for path in paths for file in _files(path) for measurement in _read(file, metric)]
    if not found:
        raise ValueError(
            f"{_names(paths)} holds no results. Run `hf-compress study` first, or give a file from `study collect`."
        )
    found = on_one_set(_distinct(found))
    order = {name: place for place, name in enumerate(COMBINATIONS)}
    return sorted(found, key=lambda o: (o.model, o.task, order[o.combination], o.sparsity, o.seed))


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        cells = sorted(path.glob("*/cell.json"))
        files = [file for file in sorted(path.iterdir()) if file.name.endswith((".jsonl", ".jsonl.zst"))]
        return cells or files
    if not path.is_file():
        raise ValueError(f"RESULTS must be a file or a folder; {path} does not exist.")
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"RESULTS must end in {', '.join(ENDINGS)}, or be a folder; got {path.name}.")
    return [path]


def _read(file: Path, metric: str) -> Iterator[Measurement]:
    if file.name == "cell.json":
        report = file.with_name("report.json")
        if report.is_file():
            values = _parsed(_text(file), str(file))
            yield _measurement(values | {"report": _parsed(_text(report), str(report))}, metric, str(file))
    elif file.suffix == ".csv":
        text = _text(file)
        while text.startswith("#"):
            text = text.partition("\n")[2]
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
            yield _from_row(row, f"{file}:{number}")
    else:
        for number, line in enumerate(_text(file).split("\n"), 1):
            if line.strip():
                yield _measurement(_parsed(line, f"{file}:{number}"), metric, f"{file}:{number}")


def _text(file: Path) -> str:
    content = file.read_bytes()
    try:
        if file.suffix == ".zst":
            decompressor = zstandard.ZstdDecompressor().decompressobj()
            content = decompressor.decompress(content)
            if not decompressor.eof:
                raise ValueError(f"{file} ends too early. Collect the results again.")
        return content.decode()
    except zstandard.ZstdError as error:
        raise ValueError(f"{file} is not compressed by zstd: {error}. Collect the results again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}.") from error


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object; got {type(values).__name__}.")
    return values


def _measurement(values: Mapping[str, Any], metric: str, where: str) -> Measurement:
    """Return the measurement in one line of results: `cell`, `report` and `seconds`."""
    cell, report = (_get(values, name, dict, where) for name in ("cell", "report"))
    combination = _get(cell, "methods", str, f"{where} cell")
    main, compressed = _get(report, "main_metric", str, where), _get(report, "compressed", dict, where)
    name = "accuracy" if metric == PAPER and "accuracy" in compressed else main
    family, layers = _get(cell, "model", str, where), _get(cell, "layers", int | None, where, None)
    size, rows = _get(report, "size", dict, where), _get(_get(report, "dataset", dict, where), "eval_rows", int, where)
    extra = _get(report, "extra", dict | None, where, None) or {}
    further = _get(extra, "compressed", dict, where, {})
    answers = records.decode(dict[str, Answers], values.get("answers", {}), f"{where} answers")
    score, many = _points(compressed, name, where), _get(extra, "rows", int | None, where, None)
    more = _points(further, name, where) if name in further else None
    error = standard_error(report, name, score, rows)
    return _checked(
        Measurement(
            key=_get(cell, "key", str, where),
            family=family.removesuffix(f"-{layers}"),
            model=family if layers is None or family.endswith(f"-{layers}") else f"{family}-{layers}",
            layers=layers,
            task=_get(cell, "task", str, where),
            combination=combination,
            sparsity=float(_get(cell, "sparsity", int | float, where)),
            seed=_get(cell, "seed", int, where),
            teacher=_get(cell, "teacher", str | None, where, None),
            metric=name,
            score=score,
            start=_points(_get(report, "dense", dict | None, where, None), name, where, required=False),
            teacher_score=_points(_get(report, "teacher", dict | None, where, None), name, where, required=False),
            **{kind: _get(size, kind, int, where) for kind in FIELDS if kind.endswith("_bytes")},
            rows=rows,
            seconds=float(_get(values, "seconds", int | float, where)),
            error=error,
            dev_score=score,
            dev_error=error,
            dev_rows=rows,
            extra_score=more,
            extra_error=None if more is None or many is None else standard_error(extra, name, more, many),
            extra_rows=None if more is None else many,
            extra_start=_points(_get(extra, "dense", dict | None, where, None), name, where, required=False),
            answers={DEV if one == MAIN else one: found for one, found in answers.items()},
        ),
        where,
    )


def _from_row(row: Mapping[str, str], where: str) -> Measurement:
    missing = [name for name in FIELDS if row.get(name) is None]
    if missing:
        raise ValueError(
            f"{where} lacks the column `{missing[0]}`. Give a cells.csv that `hf-compress study report` wrote."
        )
    kinds = {field.name: field.type for field in fields(Measurement)}
    values: dict[str, Any] = {}
    for name in FIELDS:
        kind = next(kind for kind in (int, float, str) if kinds[name] in (kind, kind | None))
        try:
            values[name] = None if row[name] == "" and name in OPTIONAL else kind(row[name])
        except ValueError as error:
            raise ValueError(f"{where} `{name}` must be a number; got {row[name]!r}.") from error
    return _checked(Measurement(**values), where)


def _checked(measurement: Measurement, where: str) -> Measurement:
    for name in FIELDS:
        value = getattr(measurement, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} `{name}` must be a finite number; got {value}.")
        if isinstance(value, int) and name != "seed" and not 1 <= value < 2**63:
            raise ValueError(f"{where} `{name}` must be at least 1 and have 64 bits; got {str(value)[:20]}.")
    if measurement.on not in (DEV, EXTRA):
        raise ValueError(f"{where} `on` must be {DEV} or {EXTRA}; got {measurement.on!r}.")
    if measurement.combination not in COMBINATIONS:
        raise ValueError(
            f"{where} `methods` must be one of {', '.join(COMBINATIONS)}; got {measurement.combination!r}."
        )
    if ("mp" in methods_in(measurement.combination)) != (0 < measurement.sparsity < 1):
        raise ValueError(
            f"{where} `sparsity` must be in (0, 1) with `mp` and 0 without; got {measurement.sparsity:g} for "
            f"{measurement.combination}."
        )
    return measurement


def _get(values: Mapping[str, Any], name: str, kind: Any, where: str, *default: Any) -> Any:
    if name not in values and default:
        return default[0]
    if name not in values:
        raise ValueError(f"{where} lacks `{name}`. A result of a study has `cell`, `report` and `seconds`.")
    if not isinstance(values[name], kind) or isinstance(values[name], bool):
        said = getattr(kind, "__name__", str(kind)).removesuffix(" | None")
        raise ValueError(f"{where} `{name}` must be of type {said}; got {values[name]!r}.")
    return values[name]


def _points(scores: Mapping[str, Any] | None, name: str, where: str, *, required: bool = True) -> Any:
    """Return a score in points of 100. A model that diverged ("nan" in its report) scores 0."""
    if scores is None and not required:
        return None
    value = (scores or {}).get(name)
    if value in ("nan", "inf", "-inf") or (isinstance(value, float) and not math.isfinite(value)):
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e6:
        raise ValueError(f"{where} the score `{name}` must be a number; got {value!r}.")
    return 100 * float(value)


def _distinct(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the measurements without duplicates, for example from files that overlap."""
    seen: dict[tuple[Any, ...], Measurement] = {}
    for measurement in measurements:
        place = (measurement.model, measurement.task, measurement.combination, measurement.sparsity, measurement.seed)
        first = seen.setdefault(place, measurement)
        if first.key != measurement.key:
            raise ValueError(
                f"Two results are of the same cell ({', '.join(map(str, place))}): {first.key} and "
                f"{measurement.key}. A report compares one recipe per combination. Give the results of one recipe."
            )
    return list(seen.values())
