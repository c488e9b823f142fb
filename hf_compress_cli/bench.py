"""`hf-compress bench`: measure the speed of a model in each runtime."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from hf_compress_cli.console import console
from hf_compress_cli.errors import clean_errors

LARGEST = 1_000_000  # Rows of a batch, or tokens of a row.


def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="PATH_OR_REPO...", help="Model folders or Hub ids, dense or compressed."),
    ],
    batch_size: Annotated[str, typer.Option(metavar="N,N,...", help="Rows per batch.")] = "1,32",
    length: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens per row.")] = "128",
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="Timed calls per variant and batch shape.")] = 20,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Threads per runtime; by default torch decides.")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Some of torch-fp32, torch-dense, torch-int8, onnxruntime, openvino; all by default.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device for PyTorch: cpu or cuda.")] = "cpu",
    save: Annotated[bool, typer.Option("--save", help="Add the result to report and card of each folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the speed of models in PyTorch, ONNX Runtime and OpenVINO."""
    with clean_errors():
        from hf_compress.folders import is_repository
        from hf_compress.report import VARIANTS, latency_table, records
        from hf_compress.report.bench import bench as measure
        from hf_compress.report.bench import save_latency

        if save and (found := [model for model in models if is_repository(model)]):
            raise ValueError(
                f"`--save` writes into folders, but {found[0]} is on the Hub. Run `hf download {found[0]} "
                "--local-dir FOLDER`, give that folder, and push it afterwards."
            )
        latency = measure(
            models,
            batch_sizes=_numbers("batch-size", batch_size),
            lengths=_numbers("length", length),
            rounds=rounds,
            threads=threads,
            variants=_variants(variants, VARIANTS),
            device=_device(device),
            progress=sys.stderr.isatty(),
        )
        if as_json:
            typer.echo(json.dumps(records.encode(latency)))
        else:
            console().print(latency_table(latency))
        for folder in models if save else ():
            card = save_latency(folder, latency)
            typer.echo(f"{folder}: no report.json to add to" if card is None else f"Written to {card}", err=True)


def _numbers(option: str, words: str) -> list[int]:
    numbers = [int(word) if word.isdecimal() and len(word) <= 7 else 0 for word in map(str.strip, words.split(","))]
    if not all(1 <= number <= LARGEST for number in numbers):
        raise typer.BadParameter(
            f"must be whole numbers from 1 to {LARGEST:,}, separated by commas; got {words[:60]!r}.",
            param_hint=f"--{option}",
        )
    return numbers


def _variants(words: str | None, known: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(known if words is None else (word.strip() for word in words.split(",")))
    if not set(chosen) <= set(known):
        raise typer.BadParameter(f"must be some of {', '.join(known)}; got {words!r}.", param_hint="--variants")
    return chosen


def _device(word: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", word):
        raise typer.BadParameter(f"must be cpu, cuda or cuda:N; got {word!r}.", param_hint="--device")
    return word
