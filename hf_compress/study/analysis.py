"""The commands that read a study: `hf-compress study report` and `hf-compress suggest`."""

# Nothing heavy is imported up here: `hf-compress --help` must not wait for matplotlib and scipy.
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hf_compress.study.suggestion import Suggestion, Weights

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
SHIPPED = "shipped.csv"


@contextmanager
def _clean_errors() -> Iterator[None]:
    """Errors that are the user's to mend become one message and exit status 1."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="Files of results (.jsonl, .jsonl.zst), or a study's folder."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, plots and index.html.")] = Path(
        "study-report"
    ),
    metric: Annotated[
        str, typer.Option("--metric", help="paper: accuracy where a task reports one; main: each task's own score.")
    ] = "paper",
    document: Annotated[
        list[Path] | None,
        typer.Option("--document", help="Markdown file whose marked tables are to be replaced; repeatable."),
    ] = None,
) -> None:
    """Make tables, plots and a page that works offline from the results of a study."""
    with _clean_errors():
        from hf_compress.study import reporting

        tables = reporting.write_report(results, out, metric=metric)
        typer.echo(f"{len(tables)} tables, plots and {out / reporting.PAGE}")
        for path in document or []:
            typer.echo(f"{path}: {reporting.quote(path, tables)} tables replaced")


def suggest(
    model: Annotated[str, typer.Option("--model", help="A model of the study, or a folder or Hub id.")],
    task: Annotated[str, typer.Option("--task", help="A task of the study, or your own, for which all stand in.")],
    max_size: Annotated[str | None, typer.Option("--max-size", metavar="10MB", help="The largest file.")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="The largest loss of score, in points of a hundred.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Results of a study; by default those that come with the package.")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="As for `study report`.")] = "paper",
) -> None:
    """Say which recipe to try first for a model and a task, and what to expect of it, from the runs of a study."""
    with _clean_errors():
        from hf_compress.study import measurements, suggestion

        found = measurements.read_measurements(shipped() if results is None else results, metric)
        known = {name for measurement in found for name in (measurement.model, measurement.family)}
        advice = suggestion.suggest(
            found,
            model,
            task,
            max_bytes=None if max_size is None else size_in_bytes(max_size),
            max_drop=max_drop,
            weights=None if model in known else _weights(model, sorted(known)),
        )
        typer.echo(said(advice, task))


def shipped() -> Path:
    """The cells of the study that comes with the package."""
    return Path(__file__).with_name(SHIPPED)


def size_in_bytes(words: str) -> float:
    """The number of bytes that "10MB", "800 kB" or "1.5e6" mean, units being decimal.

    Raises:
        ValueError: they mean none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmg]?)b?", words.strip().lower())
    if match is None:
        raise ValueError(f"`--max-size` must be a number of bytes, kB, MB or GB, as in 10MB; got {words!r}.")
    return float(match[1]) * UNITS[match[2]]


def said(advice: "Suggestion", task: str) -> str:
    """The advice in words."""
    combination, sparsity = advice.point.combination, advice.point.sparsity
    name = f"{combination} ({100 * sparsity:g} % of the linear layers' weights zero)" if sparsity else combination
    value, interval = advice.difference.value, advice.difference.interval
    sure = advice.over if interval is None else f"95 %: {interval[0]:+.1f} to {interval[1]:+.1f}, over {advice.over}"
    cut = "" if advice.layers is None else f", {advice.layers} layers"
    lines = [
        f"For {advice.asked} on {task}, to try first: {name}{cut}",
        "",
        "  " + " ".join(advice.flags),
        "",
        f"  size   {advice.size / 1e6:.1f} MB on disk, {advice.dense_size / advice.size:.1f} times smaller than dense "
        f"fp32 ({advice.dense_size / 1e6:.1f} MB)",
        f"  score  {value:+.2f} points against the dense model trained as long ({sure})",
        f"  from   {len(advice.cells)} runs: {', '.join(advice.cells[:4])}{' ...' if len(advice.cells) > 4 else ''}",
    ]
    if not advice.task_known:
        lines.append(f"  The study has no {task}: this is the mean over {', '.join(advice.tasks)}.")
    if advice.compared_to != advice.asked:
        lines.append(f"  The study's {advice.compared_to} stands in for it: no interval counts how the two differ.")
    if "kd" in combination.split("+") and advice.teacher not in (None, "self"):
        lines.append(f"  The teacher was {advice.teacher}, fine-tuned on the task.")
    return "\n".join(lines)


def _weights(model: str, known: list[str]) -> "Weights":
    """How many weights a model has that the study does not know, from its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from hf_compress import targets
    from hf_compress.study.suggestion import Weights

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`--model` must be one of the study ({', '.join(known)}), or a folder or Hub id whose configuration can "
            f"be read; for {model!r} that failed: {error}"
        ) from error
    with torch.device("meta"):
        built = AutoModelForSequenceClassification.from_config(config)
    numbers = {"embeddings": 0, "others": 0}
    for name, parameter in built.named_parameters():
        embedded = targets.part(built, name) == "embeddings"
        numbers["embeddings" if embedded else "others"] += parameter.numel()
    return Weights(**numbers)
