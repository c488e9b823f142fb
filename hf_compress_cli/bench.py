"""`hf-compress bench`: measure the speed of a model in each runtime."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_compress_cli.console import console
from hf_compress_cli.errors import clean_errors


def bench(
    folders: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Model folders, dense or compressed.")],
    batch_size: Annotated[str, typer.Option(metavar="N,N,...", help="Rows per batch.")] = "1,32",
    length: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens per row.")] = "128",
    rounds: Annotated[int, typer.Option(help="Timed calls per variant and batch shape.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Threads per runtime; by default torch decides.")] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Some of torch-fp32, torch-dense, torch-int8, onnxruntime, openvino; all by default.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device for PyTorch: cpu or cuda.")] = "cpu",
    save: Annotated[bool, typer.Option("--save", help="Add the result to report.json and card of each PATH.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the speed of models in PyTorch, ONNX Runtime and OpenVINO."""
    with clean_errors():
        from hf_compress.report import VARIANTS, latency_table, records
        from hf_compress.report.bench import bench as measure
        from hf_compress.report.bench import save_latency

        latency = measure(
            folders,
            batch_sizes=_numbers("batch-size", batch_size),
            lengths=_numbers("length", length),
            rounds=rounds,
            threads=threads,
            variants=VARIANTS if variants is None else tuple(variants.split(",")),
            device=device,
            progress=sys.stderr.isatty(),
        )
        if as_json:
            typer.echo(json.dumps(records.encode(latency)))
        else:
            console().print(latency_table(latency))
        for folder in folders if save else ():
            card = save_latency(folder, latency)
            typer.echo(f"{folder}: no report.json to add to" if card is None else f"Written to {card}", err=True)


def _numbers(option: str, words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"must be whole numbers separated by commas; got {words!r}.", param_hint=f"--{option}"
        ) from error
