"""The packed file as a format: it is always there, and all other formats are written from it."""

from pathlib import Path

from hf_compress.export.descriptor import Format
from hf_compress.export.parity import load


def _installed() -> None:
    """Do nothing: the packed file needs no library beside the package."""


PACKED = Format(
    name="packed",
    path=Path("model.safetensors"),
    require=_installed,
    write=None,
    read=lambda path, reference: load(path.parent),
    help="the smallest, always written",
    card="Transformers reads it after `import hf_compress`.",
    loading="""\
import hf_compress  # makes Transformers read this file format
from transformers import {auto_class}

model = {auto_class}.from_pretrained(folder)""",
)
