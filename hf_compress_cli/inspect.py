"""`hf-compress inspect`: show the parts of one compressed model, or compare several."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from hf_compress_cli.console import console
from hf_compress_cli.errors import clean_errors

if TYPE_CHECKING:
    from hf_compress.checkpoint.inventory import TensorFacts


def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH_OR_REPO...",
            help="A compressed folder or Hub id (owner/name or owner/name@revision). Give several to compare them.",
        ),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="Show one line per tensor instead of per layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of every tensor as JSON.")] = False,
    codecs: Annotated[bool, typer.Option("--codecs", help="Show the bytes that each codec would need.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the comparison as a Markdown table.")] = False,
) -> None:
    """Show bits, zeros and bytes of a compressed model, and how much each method touched; or compare several.

    A file with steps by sensitivity also shows the share of each layer in the sensitivity of the outputs.
    Several are compared by the sizes and scores in their reports.
    """
    compares = markdown or len(paths) > 1
    if compares and (tensors or as_json or codecs):
        raise typer.BadParameter(
            "need exactly one PATH_OR_REPO and no --markdown; several are compared by their reports alone.",
            param_hint="--tensors, --json and --codecs",
        )
    with clean_errors():
        if compares:
            _compare(paths, markdown=markdown)
        else:
            _inspect_one(paths[0], tensors=tensors, as_json=as_json, codecs=codecs)


def _compare(paths: Sequence[str], *, markdown: bool) -> None:
    from hf_compress.folders import local_folder
    from hf_compress.report.report import REPORT_NAME, Report
    from hf_compress.report.tables import markdown_table, terminal_table

    reports = [Report.load(local_folder(path, only=[REPORT_NAME])) for path in paths]
    if markdown:
        typer.echo(markdown_table(reports))
    else:
        console().print(terminal_table(reports))


def _inspect_one(path_or_repo: str, *, tensors: bool, as_json: bool, codecs: bool) -> None:
    from hf_compress.checkpoint import inventory
    from hf_compress.folders import local_folder

    folder = local_folder(path_or_repo, only=["*.json", "*.safetensors"])
    facts = inventory.tensors(folder)
    by_codec = inventory.bytes_by_codec(folder) if codecs else {}
    if as_json:
        sensitivity = _sensitivity(facts)
        rows = [_row(fact.name, [fact], sensitivity) for fact in facts]
        for row in rows if codecs else ():
            row["bytes_by_codec"] = by_codec[row["name"]]
        touched = {method: asdict(shares) for method, shares in inventory.shares(facts).items()}
        typer.echo(json.dumps({"tensors": rows, "total": _row("total", facts, sensitivity), "touched": touched}))
        return
    console().print(_codec_table(facts, by_codec, by_tensor=tensors) if codecs else _table(facts, by_tensor=tensors))
    typer.echo(_touched(facts))
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    container = on_disk - sum(fact.stored_bytes for fact in facts)
    typer.echo(
        f"{path_or_repo}: {on_disk:,} bytes in safetensors files, including {container:,} bytes of headers "
        f"({100 * container / on_disk:.2f} %)"
    )


def _touched(facts: Sequence["TensorFacts"]) -> str:
    """Return how much each method touched, one line each, and what else is left than what it never touches."""
    from hf_compress.checkpoint.inventory import shares

    lines, heads = [], {"pruned": ("in pruned layers", "dense"), "quantized": ("as integers", "in floating point")}
    for method, found in shares(facts).items():
        how, stays = heads[method]
        lines.append(
            f"{how}: {100 * found.of_weights:.1f} % of the weights, {100 * found.of_bytes:.1f} % of the bytes; "
            f"{stays}: {', '.join(found.rest(method))}"
        )
    return "\n".join(lines or ["as integers or pruned: nothing"])


def _plain(name: str) -> Text:
    """Return a name from a file as text for the terminal: no markup is interpreted, control characters are escaped."""
    return Text("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name))


def _sensitivity(facts: Sequence["TensorFacts"]) -> float:
    """Return the sum of the sensitivities of all tensors; 0 if no tensor has fixed steps."""
    return sum(fact.sensitivity or 0.0 for fact in facts)


def _row(name: str, facts: Sequence["TensorFacts"], whole: float) -> dict[str, Any]:
    """Return the facts of one tensor, or the sums over several, under `name`; `whole` is that of `_sensitivity`."""
    numel, stored = sum(fact.numel for fact in facts), sum(fact.stored_bytes for fact in facts)
    stepped = any(fact.sensitivity is not None for fact in facts)
    return {
        "name": name,
        "part": facts[0].part if len({fact.part for fact in facts}) == 1 else None,
        "shape": list(facts[0].shape) if len(facts) == 1 else None,
        "weights": numel,
        "grid_bits": sorted({fact.grid_bits for fact in facts if fact.grid_bits is not None}),
        "bits_per_weight": 8 * stored / numel if numel else 0.0,
        "sparsity": sum(fact.sparsity * fact.numel for fact in facts) / numel if numel else 0.0,
        "dense_bytes": sum(fact.dense_bytes for fact in facts),
        "stored_bytes": stored,
        "entropy_bytes": round(sum(fact.entropy_bytes for fact in facts)),
        "codec": facts[0].codec if len({fact.codec for fact in facts}) == 1 else None,
        "sensitivity_share": _sensitivity(facts) / whole if whole and stepped else None,
    }


def _layer(fact: "TensorFacts") -> str:
    """Return the group of a tensor: its name up to the layer number if it has one, else its part of the model."""
    pieces = fact.name.split(".")
    numbers = [index for index, piece in enumerate(pieces) if piece.isdecimal()]
    if numbers:
        return ".".join(pieces[: numbers[0] + 1])
    return "rest of the encoder" if fact.part == "encoder" else fact.part


def _grouped(facts: Sequence["TensorFacts"]) -> dict[str, list["TensorFacts"]]:
    """Group the tensors by layer, in model order: embeddings, numbered layers, the rest of the encoder, the head."""
    groups: dict[str, list[TensorFacts]] = {}
    for fact in facts:
        groups.setdefault(_layer(fact), []).append(fact)

    def place(name: str) -> tuple[int, str, int]:
        prefix, _, last = name.rpartition(".")
        number = int(last) if last.isdecimal() else sys.maxsize
        return ("embeddings", "encoder", "head").index(groups[name][0].part), prefix or "~", number

    return {name: groups[name] for name in sorted(groups, key=place)}


def _codec_table(
    facts: Sequence["TensorFacts"], by_codec: dict[str, dict[str, int | None]], *, by_tensor: bool
) -> Table:
    """Return the bytes on disk and in each codec alone. A tensor that a codec cannot hold counts as on disk."""
    names = list(next(iter(by_codec.values())))
    table = Table(
        box=box.SIMPLE,
        caption="file: each chunk in its shortest codec. Others: all chunks in one codec, where it can hold them.",
        caption_justify="left",
    )
    table.add_column("tensor" if by_tensor else "part or layer", overflow="fold")
    for heading in ("file", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = {fact.name: [fact] for fact in facts} if by_tensor else _grouped(facts)
    for name, group in [*groups.items(), ("total", list(facts))]:
        if name == "total":
            table.add_section()
        sums = [
            sum(fact.stored_bytes if (size := by_codec[fact.name][codec]) is None else size for fact in group)
            for codec in names
        ]
        table.add_row(_plain(name), *(f"{number:,}" for number in [sum(fact.stored_bytes for fact in group), *sums]))
    return table


def _table(facts: Sequence["TensorFacts"], *, by_tensor: bool) -> Table:
    """Return size, bits and zeros of each layer or tensor, and its share of sensitivity if the file has steps."""
    whole = _sensitivity(facts)
    caption = (
        "grid: bits of the stored integers. bits: bits on disk per weight. entropy: order-0 entropy bound in bytes. "
        "fp32: bytes of the dense tensor."
    )
    headings = ["shape" if by_tensor else "weights", "grid", "bits", "zeros", "bytes", "entropy", "fp32"]
    if whole:
        caption += (
            " sens.: share of the sensitivity of the outputs, from the steps. Rows whose step is set by their largest "
            "weight count too little."
        )
        headings.insert(3, "sens.")
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    table.add_column("tensor" if by_tensor else "part or layer", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    groups = {fact.name: [fact] for fact in facts} if by_tensor else _grouped(facts)
    rows = [_row(name, group, whole) for name, group in groups.items()]
    for row in [*rows, _row("total", facts, whole)]:
        if row["name"] == "total":
            table.add_section()
        cells = [
            " x ".join(map(str, row["shape"])) if by_tensor and row["shape"] is not None else f"{row['weights']:,}",
            " ".join(map(str, row["grid_bits"])),
            f"{row['bits_per_weight']:.2f}",
            f"{100 * row['sparsity']:.1f} %",
            f"{row['stored_bytes']:,}",
            f"{row['entropy_bytes']:,}",
            f"{row['dense_bytes']:,}",
        ]
        if whole:
            share = row["sensitivity_share"]
            cells.insert(3, "" if share is None else f"{100 * share:.1f} %")
        table.add_row(_plain(row["name"]), *cells)
    return table
