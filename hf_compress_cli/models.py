"""The commands for one model: run a script; look into, compare, measure and push what came out; a demonstration."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from hf_compress_cli.errors import clean_errors

if TYPE_CHECKING:
    from hf_compress.checkpoint.inventory import TensorFacts

app = typer.Typer()


@app.command()
def inspect(
    path_or_repo: Annotated[str, typer.Argument(metavar="PATH_OR_REPO", help="A compressed folder, or its Hub id.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="One line per stored tensor, not per layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Facts of every tensor, as JSON.")] = False,
    codecs: Annotated[bool, typer.Option("--codecs", help="Bytes in each codec, not only the shortest.")] = False,
) -> None:
    """Show what a compressed model consists of: bits per weight, sparsity, bytes on disk, entropy bound."""
    with clean_errors():
        from hf_compress.checkpoint import inventory

        folder = _local(path_or_repo)
        facts = inventory.tensors(folder)
        by_codec = inventory.bytes_by_codec(folder) if codecs else {}
        if as_json:
            rows = [_row(fact.name, [fact]) for fact in facts]
            for row in rows if codecs else ():
                row["bytes_by_codec"] = by_codec[row["name"]]
            typer.echo(json.dumps({"tensors": rows, "total": _row("total", facts)}))
            return
        on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        console = _console()
        console.print(_codec_table(facts, by_codec, by_tensor=tensors) if codecs else _table(facts, by_tensor=tensors))
        container = on_disk - sum(fact.stored_bytes for fact in facts)
        console.print(
            f"{path_or_repo}: {on_disk:,} bytes in safetensors files, {container:,} of them their headers "
            f"({100 * container / on_disk:.2f} %)",
            highlight=False,
        )


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders that hold a report.json each.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Show the sizes and scores of several compressed models in one table."""
    with clean_errors():
        from hf_compress.report.report import Report
        from hf_compress.report.tables import markdown_table, terminal_table

        reports = [Report.load(folder) for folder in folders]
        if markdown:
            typer.echo(markdown_table(reports))
        else:
            _console().print(terminal_table(reports))


@app.command()
def bench(
    folders: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders, dense or compressed.")],
    batch_size: Annotated[str, typer.Option(metavar="N,N,...", help="Rows of a batch.")] = "1,32",
    length: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens of a row.")] = "128",
    rounds: Annotated[int, typer.Option(help="Timed calls of each variant for each shape of a batch.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Threads of every runtime; by default those of torch.")] = None,
    variants: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Of torch-fp32, torch-dense, torch-int8, onnxruntime, openvino."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where PyTorch computes: cpu or cuda.")] = "cpu",
    save: Annotated[bool, typer.Option("--save", help="Also write into report.json and card of each PATH.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how fast each way to run the models is: PyTorch dense and int8, ONNX Runtime, OpenVINO."""
    with clean_errors():
        from hf_compress.report import bench as speed
        from hf_compress.report import records

        chosen = speed.VARIANTS if variants is None else tuple(variants.split(","))
        latency = speed.bench(
            folders,
            batch_sizes=_numbers("batch-size", batch_size),
            lengths=_numbers("length", length),
            rounds=rounds,
            threads=threads,
            variants=chosen,
            device=device,
            progress=sys.stderr.isatty(),
        )
        if as_json:
            typer.echo(json.dumps(records.encode(latency)))
        else:
            _console().print(speed.latency_table(latency))
        for folder in folders if save else ():
            card = speed.save_latency(folder, latency)
            typer.echo(f"{folder}: no report.json to write into" if card is None else f"Written to {card}", err=True)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A finished folder: weights, report and card.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub; created if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Hide a repository that is created.")] = False,
) -> None:
    """Upload a finished folder to the Hub in one commit, after checking that card and report agree."""
    with clean_errors():
        from hf_compress.report import hub

        typer.echo(hub.push(folder, repo_id, private=private))


@app.command(
    # All is left to the launcher: what is not ours belongs to the script, `--help` too.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
    add_help_option=False,
)
def run(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="SCRIPT.py ...")] = None,
) -> None:
    """Run any Trainer script, unmodified, and compress what it trains: SCRIPT.py, its arguments, and our flags."""
    from hf_compress.launch import launcher as launch

    raise typer.Exit(launch.main(arguments or []))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the result.")] = Path("demo"),
) -> None:
    """Train a small teacher on synthetic sentences and compress it with all three methods, without the Hub."""
    with clean_errors():
        from hf_compress_cli import demo as demonstration

        demonstration.main(out)


def _numbers(option: str, words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError as error:
        raise ValueError(f"`--{option}` must be numbers with commas between them; got {words!r}.") from error


def _console() -> "Console":
    # A pipe has no width to fit into, and folded names cannot be searched.
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


def _local(path_or_repo: str) -> Path:
    """The folder with the model: the path itself, or the files that `inspect` needs, fetched from the Hub."""
    path = Path(path_or_repo)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path_or_repo, allow_patterns=["*.json", "model.safetensors"]))
    except HFValidationError as error:
        raise ValueError(f"PATH_OR_REPO must be a folder or a Hub id; {path_or_repo!r} is neither. {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"There is no folder {path_or_repo}, and the Hub did not give it: {error}") from error


def _row(name: str, facts: Sequence["TensorFacts"]) -> dict[str, Any]:
    """The facts of one tensor, or the sums of several, under the name `name`."""
    numel, stored = sum(fact.numel for fact in facts), sum(fact.stored_bytes for fact in facts)
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
    }


def _layer(fact: "TensorFacts") -> str:
    """The group of a tensor: its name up to the layer's number, or else its part of the model."""
    pieces = fact.name.split(".")
    numbers = [index for index, piece in enumerate(pieces) if piece.isdecimal()]
    if numbers:
        return ".".join(pieces[: numbers[0] + 1])
    return "rest of the encoder" if fact.part == "encoder" else fact.part


def _grouped(facts: Sequence["TensorFacts"]) -> dict[str, list["TensorFacts"]]:
    """The tensors by layer, in the order of the model: embeddings, layers by their number, the rest, the head."""
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
    """Bytes in the file beside those with all chunks in one codec, or as in the file where it cannot hold a tensor."""
    names = list(next(iter(by_codec.values())))
    table = Table(
        box=box.SIMPLE,
        caption="file: every chunk in its shortest codec. The rest: all chunks in one, where it can hold the tensor.",
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
        table.add_row(name, *(f"{number:,}" for number in [sum(fact.stored_bytes for fact in group), *sums]))
    return table


def _table(facts: Sequence["TensorFacts"], *, by_tensor: bool) -> Table:
    table = Table(
        box=box.SIMPLE,
        caption="grid: bits of the integers. bits: on disk, per weight. entropy: the order-0 bound in bytes. fp32: "
        "bytes of the dense tensor.",
        caption_justify="left",
    )
    table.add_column("tensor" if by_tensor else "part or layer", overflow="fold")
    for heading in ("shape" if by_tensor else "weights", "grid", "bits", "zeros", "bytes", "entropy", "fp32"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = {fact.name: [fact] for fact in facts} if by_tensor else _grouped(facts)
    rows = [_row(name, group) for name, group in groups.items()]
    for row in [*rows, _row("total", facts)]:
        if row["name"] == "total":
            table.add_section()
        table.add_row(
            row["name"],
            " x ".join(map(str, row["shape"])) if by_tensor and row["shape"] is not None else f"{row['weights']:,}",
            " ".join(map(str, row["grid_bits"])),
            f"{row['bits_per_weight']:.2f}",
            f"{100 * row['sparsity']:.1f} %",
            f"{row['stored_bytes']:,}",
            f"{row['entropy_bytes']:,}",
            f"{row['dense_bytes']:,}",
        )
    return table
