"""A run resumes from its newest whole checkpoint, even if a kill or a full disk left incomplete ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_compress.checkpoint import resume
from hf_compress.checkpoint.resume import is_complete, last_complete_checkpoint


def _checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint as Trainer writes it with `save_only_model`."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"weight": torch.zeros(3)}, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "bert"}')
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(content)

    damage.__name__ = f"{name} {content[:20]!r}"
    return damage


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


DAMAGE = [
    _write("config.json", b""),
    _write("config.json", b"{}"),
    _write("config.json", b"[]"),
    _write("trainer_state.json", b"[]"),
    _write("trainer_state.json", b"null"),
    _write("trainer_state.json", b'{"global_step": null}'),
    _write("trainer_state.json", b'{"global_step": 2, "stateful_callbacks": []}'),
    _write("trainer_state.json", b"\xff\xfe"),
    _write("model.safetensors", b""),
    _write("model.safetensors", _header(b"[]")),
    _write("model.safetensors", _header(b'{"a":1}')),
    _write("model.safetensors", _header(b'{"a":{"data_offsets":[0]}}')),
    _write("model.safetensors", _header(b'{"a":{"data_offsets":[0,"x"]}}')),
    _write("model.safetensors", _header(b"\xff{not json")),
    _write("model.safetensors.index.json", b"[]"),
    _write("model.safetensors.index.json", b'{"weight_map": []}'),
    _write("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'),
    _write("pytorch_model.bin", b"PK"),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_skipped_and_logged(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, damaged = _checkpoint(tmp_path, 1), _checkpoint(tmp_path, 2)
    assert last_complete_checkpoint(tmp_path) == str(damaged)
    damage(damaged)
    said: list[str] = []
    monkeypatch.setattr(resume.logger, "warning", said.append)
    assert last_complete_checkpoint(tmp_path) == str(whole)
    assert said == [f"Skipping {damaged}: it was not written completely."]


def test_a_checkpoint_of_a_plain_module_needs_no_config(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 1)
    (path / "config.json").unlink()
    assert is_complete(path)
