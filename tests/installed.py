"""Uses the package as a user who installed it: its data, its program, a model compressed, saved and loaded again.

`make check-dist` and a slow test run it outside the repository: `python installed.py CHECKOUT [PROGRAM ...]`. It needs
no extra, and it fails if `hf_compress` comes from the checkout.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import hf_compress
from hf_compress.launch.arguments import recipe_names


def check_data(checkout: Path) -> None:
    package = Path(hf_compress.__file__).resolve().parent
    assert not package.is_relative_to(checkout.resolve()), f"imported from the checkout: {package}"
    assert version("hf-compress") == hf_compress.__version__
    there = {path.relative_to(checkout) for path in (checkout / "hf_compress").rglob("*") if path.is_file()}
    lacking = [
        str(path) for path in there if "__pycache__" not in path.parts and not (package.parent / path).is_file()
    ]
    assert not lacking, f"not installed: {lacking}"


def check_model(program: list[str]) -> None:
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    model = BertForSequenceClassification(config).eval()
    rows = torch.arange(6).view(1, 6)
    with tempfile.TemporaryDirectory() as folder:
        hf_compress.save_compressed(model, folder, hf_compress.Recipe())
        loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        inspected = subprocess.run([*program, "inspect", folder], capture_output=True, text=True, check=True)
    with torch.no_grad():
        torch.testing.assert_close(model(rows).logits, loaded(rows).logits)
    assert "bert.encoder.layer.0" in inspected.stdout, inspected.stdout


if __name__ == "__main__":
    checkout, program = Path(sys.argv[1]), sys.argv[2:] or ["hf-compress"]
    check_data(checkout)
    assert "paper-all-60" in recipe_names()
    subprocess.run([*program, "--help"], stdout=subprocess.DEVNULL, check=True)
    check_model(program)
    print(f"hf_compress {hf_compress.__version__} works from {Path(hf_compress.__file__).parent}")
