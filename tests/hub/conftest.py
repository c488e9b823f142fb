"""Finished folders, made once for all tests of the Hub."""

import shutil
from pathlib import Path

import pytest

from hf_compress.report.card import save_card
from tests.hub import finished


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished folders by name: "finished", "earlier" (other weights, and a graph) and "many" (25 files)."""
    base = tmp_path_factory.mktemp("folders")
    made = finished.make(base / "finished")
    earlier = finished.make(base / "earlier", seed=1)
    (earlier / "model_quantized.onnx").write_bytes(b"a graph of earlier weights")
    save_card(earlier)
    many = finished.with_more_files(shutil.copytree(made, base / "many"), 25)
    return {"finished": made, "earlier": earlier, "many": many}
