"""`hf-compress quantize`: compress a model without training, from texts alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_compress_cli.console import quiet
from hf_compress_cli.errors import clean_errors

if TYPE_CHECKING:
    from hf_compress.report.report import Report


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="PATH_OR_REPO", help="The dense model: a folder, or owner/name of the Hub.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="FILE_OR_DATASET", help="Texts: .txt, .csv, .tsv, .json, .jsonl, .parquet, or a dataset."
        ),
    ],
    budget_mb: Annotated[
        float, typer.Option("--budget_mb", metavar="MB", help="Largest size of the packed file, in 10^6 bytes.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for the result; by default named after the model.")
    ] = None,
    quant_scheme: Annotated[
        str, typer.Option("--quant_scheme", help="Number format; int8-weight leaves inputs in floating point.")
    ] = "int8",
    quant_exclude: Annotated[
        list[str] | None,
        typer.Option("--quant_exclude", metavar="REGEX", help="Leave matching layers in floating point; repeatable."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to choose steps on; by default train.")] = None,
    eval_split: Annotated[
        str | None, typer.Option("--eval_split", help="Split to measure on; by default validation, or held-out rows.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Column of text, or two with a comma for pairs; by default found."),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label_column", metavar="NAME", help="Column of labels; by default found.")
    ] = None,
    eval_rows: Annotated[int, typer.Option("--eval_rows", min=1, help="Rows to measure on, at most.")] = 1000,
    max_length: Annotated[
        int | None, typer.Option("--max_length", min=2, help="Tokens that texts are cut to; by default up to 128.")
    ] = None,
    formats: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Other formats to write too, for example onnx,openvino.")
    ] = None,
    card_metadata: Annotated[
        Path | None,
        typer.Option("--card_metadata", metavar="FILE", help="YAML or JSON for the card: license, base_model, title."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's repository.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token; by default that of `hf auth login`.")] = None,
) -> None:
    """Compress a model to a file size without training, in minutes on one core.

    Takes an encoder with a head or without one, such as a sentence-transformers folder, and texts without labels.
    Writes a folder with report and card that `from_pretrained` loads. To win back what rounding costs, train with
    `hf-compress run` and `--compress_budget_mb` instead.
    """
    with clean_errors(), quiet():
        from hf_compress.oneshot import Data, quantize_once

        target = out or Path(f"{Path(model).name}-{budget_mb:g}MB")
        texts = Data(data, config, split, eval_split, _words(columns), label_column, eval_rows=eval_rows, token=token)
        report = quantize_once(
            model,
            texts,
            target,
            budget_mb=budget_mb,
            scheme=quant_scheme,
            exclude=tuple(quant_exclude or ()),
            formats=_words(formats),
            max_length=max_length,
            revision=revision,
            token=token,
            card_metadata=card_metadata,
            tell=lambda said: typer.echo(said, err=True),
        )
        typer.echo(summary(report, target))


def _words(given: str | None) -> list[str]:
    return [] if given is None else [word.strip() for word in given.split(",") if word.strip()]


def summary(report: "Report", folder: Path) -> str:
    """Return what was reached, in a few lines."""
    from hf_compress.report.phrases import metric_names, shown, spelt

    size = report.size
    lines = [
        f"{folder}: {size.packed_bytes / 1e6:.2f} MB instead of {size.dense_bytes / 1e6:.2f} MB, "
        f"{size.ratio:.1f} times smaller."
    ]
    for name in metric_names(report):
        dense = (report.dense or {}).get(name)
        beside = "" if dense is None else f" (dense {shown(report, name, dense)})"
        lines.append(f"  {spelt(name)}: {shown(report, name, report.compressed[name])}{beside}")
    lines += [f"  not written: {name}: {why}" for name, why in report.failed_formats.items()]
    return "\n".join([*lines, f"Next: read {folder / 'README.md'}, or run `hf-compress inspect {folder}`."])
