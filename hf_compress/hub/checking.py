"""What must hold before a finished folder is uploaded."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_compress.report.card import render, template_version
from hf_compress.report.contents import CARD_NAME
from hf_compress.report.report import REPORT_NAME, Report

READ_BYTES = 1 << 22
NEEDED = (REPORT_NAME, CARD_NAME, "config.json", "model.safetensors", "recipe.json")


def check(folder: str | Path) -> Report:
    """Check that `folder` can be pushed, and return its report.

    Raises:
        ValueError: a file is missing, the weights are not those of the report, or the card was rendered by another
            template or edited by hand.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder that a compression run has written; {folder} does not exist.")
    _check_files(folder, NEEDED)
    report = Report.load(folder)
    _check_files(folder, [report.card_picture] if report.card_picture else [])
    found, reported = (folder / "model.safetensors").stat().st_size, report.size.packed_bytes
    if found != reported:
        raise ValueError(
            f"model.safetensors in {folder} has {found:,} bytes, but its report says {reported:,}. The weights were "
            "written after the report: measure again."
        )
    again = f"To render it again, run: {render_command(folder)}"
    if report.card_template != template_version():
        raise ValueError(
            f"{folder / CARD_NAME} was rendered by another version of the card's template "
            f"({report.card_template or 'not recorded'}; this version is {template_version()}). {again}"
        )
    if (folder / CARD_NAME).read_text("utf-8") != render(report):
        raise ValueError(f"{folder / CARD_NAME} is not what {REPORT_NAME} says: one of them was edited. {again}")
    return report


def check_token(folder: str | Path, token: str | None) -> None:
    """Refuse a folder in which a file that would be uploaded holds `token`.

    Raises:
        ValueError: a file holds it.
    """
    if not token:
        return
    folder, secret = Path(folder), token.encode()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and _holds(path, secret):
            raise ValueError(
                f"{path} holds the Hub token that is in use, so {folder} is not uploaded. Remove the token from that "
                "file. If it was ever shared, revoke it at https://huggingface.co/settings/tokens."
            )


def _holds(path: Path, secret: bytes) -> bool:
    """Whether the file holds the bytes, read in parts that overlap."""
    kept = b""
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            if secret in kept + part:
                return True
            kept = part[-len(secret) :]
    return False


def _check_files(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}. Call `save_compressed`, `Report.save` and `save_card`, in this "
            "order."
        )


def render_command(folder: str | Path) -> str:
    """The command that renders the card of `folder` again from its report."""
    return shlex.join(["python", "-c", f"from hf_compress import save_card; save_card({json.dumps(str(folder))})"])
