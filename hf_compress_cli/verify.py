"""`hf-compress verify`: check a published model as a stranger would, and measure its scores again."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from hf_compress_cli.console import quiet
from hf_compress_cli.errors import message

if TYPE_CHECKING:
    from hf_compress.report.agreement import Check


def verify(
    model: Annotated[str, typer.Argument(metavar="PATH_OR_REPO", help="A finished folder, or owner/name of the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="ID_OR_FOLDER", help="Dataset to score on; by default that of the report.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset, for example validation.")] = None,
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the dataset.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score the first N rows only; by default all.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token; by default that of `hf auth login`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check everything that a published model's report says, and measure its scores again.

    Compares files and card with the report, counts sizes, bits and zeros again, runs every format, and scores the
    model on the dataset of the report. Nothing is written, and no code of the repository is executed.

    Exit status: 0 if everything that can be checked is true and the score was measured again; 1 if something differs;
    2 if nothing differs, but the score (or the whole model) cannot be checked.
    """
    with quiet():
        from hf_compress.verify import Data, verify_folder

        rows_of = Data(dataset, config, split, data_revision, rows)
        try:
            found = verify_folder(model, rows_of, revision=revision, token=token)
        except (ValueError, OSError, ImportError) as error:
            # Nothing was verified, which is not the same as something that differs.
            typer.echo(f"Error: {message(error)}", err=True)
            raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        for check in found.checks:
            typer.echo(_line(check))
        typer.echo(f"\n{found.verdict}: {SUMMARY[found.verdict]}")
    raise typer.Exit(found.status)


SUMMARY = {
    "true": "the report of this model holds, and its score was measured again.",
    "differs": "this model is not what its report says.",
    "cannot be checked": "nothing differs, but the score was not measured again.",
}


def _line(check: "Check") -> str:
    """Return a check as one line for each of its sentences, without control characters."""
    first, *others = check.details or [""]
    lines = [f"{check.name:<{WIDTH}}{check.verdict}{': ' if first else ''}{first}", *(" " * WIDTH + o for o in others)]
    return "\n".join("".join(mark if mark.isprintable() else " " for mark in line) for line in lines)


WIDTH = 26
