"""Decoded copies: the same bits as without them, never wrong, and no larger than allowed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel, T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from hf_compress.checkpoint import decoded
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.locks import lock, unlock
from hf_compress_cli import app
from tests.quantized import quantized
from tests.tiny import bert

# Transformers says so of each option of loading, which is given this way.
pytestmark = pytest.mark.filterwarnings("ignore:You passed .quantization_config. or equivalent")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(decoded.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv(decoded.SWITCH, "1")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return quantized(bert(), tmp_path / "packed", scheme="int8")


def _load(folder: Path, run: str = "dense", cache: bool | None = None, **options: object) -> PreTrainedModel:
    config = CompressionConfig(run=run, cache=cache)  # type: ignore[arg-type]
    return BertForSequenceClassification.from_pretrained(folder, quantization_config=config, **options)


def _same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    mine, theirs = ({**m.state_dict(), **dict(m.named_buffers())} for m in (one, other))
    assert mine.keys() == theirs.keys()
    ids = torch.arange(1, 9).view(1, 8)
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (one, other)]
    return torch.equal(*logits) and all(
        torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype for name, tensor in mine.items()
    )


def _files(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"*/{decoded.WEIGHTS}"))


def _flip_last_byte(path: Path) -> None:
    """Change the file `path`, but not its size and time."""
    data, state = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("run", ["dense", "int8"])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"device_map": {"": "cpu"}}], ids=str)
def test_a_copy_has_the_bits_of_the_packed_file(run: str, options: dict, folder: Path, cache: Path) -> None:
    plain = _load(folder, run, cache=False, **options)
    assert not cache.exists()
    first = _load(folder, run, **options)
    (written,) = _files(cache)
    state = written.stat()
    second = _load(folder, run, **options)
    assert _same(first, plain) and _same(second, plain)
    # Products of mapped weights have the bits of others only if they are as aligned.
    assert all(one.data_ptr() % 64 == 0 for one in second.parameters() if one.nbytes % 64 == 0)
    assert written.stat().st_mtime_ns == state.st_mtime_ns and len(_files(cache)) == 1


def test_shards_and_other_dtypes_have_copies_of_their_own(folder: Path, cache: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    plain = _load(folder, cache=False)
    plain.save_pretrained(shards, max_shard_size="6KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    for _ in range(2):
        assert _same(_load(shards), plain)
        _load(folder), _load(folder, dtype=torch.bfloat16), _load(folder, "int8")
    assert len(_files(cache)) == 4


def test_tied_weights_stay_tied(cache: Path, tmp_path: Path) -> None:
    config = T5Config(vocab_size=29, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    packed = quantized(model, tmp_path / "t5", scheme="int8-weight")
    plain = T5ForConditionalGeneration.from_pretrained(
        packed, quantization_config=CompressionConfig(cache=False)
    ).state_dict()
    for _ in range(2):
        loaded = T5ForConditionalGeneration.from_pretrained(packed)
        assert loaded.shared.weight is loaded.encoder.embed_tokens.weight
        assert all(torch.equal(tensor, plain[name]) for name, tensor in loaded.state_dict().items())
    assert len(_files(cache)) == 1


def test_training_a_mapped_model_leaves_the_copy_alone(folder: Path, cache: Path) -> None:
    _load(folder)
    (written,) = _files(cache)
    before = written.read_bytes()
    model = _load(folder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.arange(1, 9).view(1, 8), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    assert written.read_bytes() == before and _same(_load(folder), _load(folder, cache=False))


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "empty", "no scales", "no about", "wrong about", "header", "scale"]
)
def test_a_damaged_copy_is_made_again(damage: str, folder: Path, cache: Path) -> None:
    plain = _load(folder, cache=False)
    _load(folder)
    (written,) = _files(cache)
    about = written.with_name(decoded.ABOUT)
    data = bytearray(written.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
        written.write_bytes(data)
    elif damage in ("truncated", "empty"):
        written.write_bytes(data[: -1 if damage == "truncated" else 0])
    elif damage == "no scales":
        written.with_name(decoded.BESIDE).unlink()
    elif damage == "no about":
        about.unlink()
    elif damage == "wrong about":
        about.write_text(json.dumps({"version": 1, "files": [1, 2]}))
    elif damage == "scale":
        _flip_last_byte(written.with_name(decoded.BESIDE))
    else:  # The names of two tensors of one shape exchanged; size and time as they were.
        state = written.stat()
        text = (
            bytes(data)
            .replace(b"self.query.weight", b"self.xxxxx.weight")
            .replace(b"self.key.weight", b"self.yyy.weight")
        )
        written.write_bytes(text)
        os.utime(written, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _same(_load(folder), plain)
    (written,) = _files(cache)
    assert written.with_name(decoded.ABOUT).is_file() and _same(_load(folder), plain)


def test_a_changed_packed_file_gets_another_copy(folder: Path, cache: Path, tmp_path: Path) -> None:
    _load(folder)
    other = quantized(bert(seed=1), tmp_path / "other", scheme="int8")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert _same(_load(folder), _load(other, cache=False)) and len(_files(cache)) == 2


def test_a_damaged_packed_file_is_refused_and_leaves_no_copy(folder: Path, cache: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum|saved together"):
        _load(folder)
    assert not _files(cache) and not list(cache.glob(".*"))


def test_the_oldest_copies_make_room(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = cache / ("0" * 64)
    unreadable.mkdir(parents=True)
    (unreadable / decoded.ABOUT).write_text(json.dumps({"version": decoded.VERSION - 1}))
    _load(folder), _load(folder, "int8")
    assert not unreadable.exists()
    old, new = sorted(decoded.copies(), key=lambda copy: copy.run)
    os.utime(old.folder / decoded.ABOUT, (1, 1))
    monkeypatch.setenv(decoded.LIMIT, str((old.bytes + new.bytes + 100) / 1e9))
    _load(folder, dtype=torch.bfloat16)
    assert [copy.folder for copy in decoded.copies()] != [] and not old.folder.exists() and new.folder.exists()
    monkeypatch.setenv(decoded.LIMIT, "1e-6")
    plain = _load(folder, cache=False, dtype=torch.float16)
    assert _same(_load(folder, dtype=torch.float16), plain) and new.folder.exists()


def test_a_copy_that_is_being_loaded_stays(folder: Path, cache: Path) -> None:
    _load(folder)
    (copy,) = decoded.copies()
    opened, again = lock(copy.folder, shared=True), lock(copy.folder, shared=True)
    assert decoded.clear() == 0 and copy.folder.exists()
    unlock(opened), unlock(again)
    assert decoded.clear() >= copy.bytes and not copy.folder.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_without_write_access_only_costs_time(folder: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o500)
    assert _same(_load(folder), _load(folder, cache=False))


def test_a_file_in_place_of_the_folder_only_costs_time(folder: Path, cache: Path) -> None:
    cache.write_text("not a folder")
    assert _same(_load(folder), _load(folder, cache=False))


@pytest.mark.parametrize(("name", "value"), [(decoded.SWITCH, "maybe"), (decoded.LIMIT, "-1"), (decoded.LIMIT, "all")])
def test_wrong_settings_are_refused_by_name(
    name: str, value: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        _load(folder)


def test_commands_list_check_and_clear_copies(folder: Path, cache: Path) -> None:
    _load(folder)
    said = CliRunner().invoke(app, ["cache", "list"])
    assert said.exit_code == 0 and "float32" in said.stdout and "1 copies" in said.stdout
    (written,) = _files(cache)
    assert "0 of them damaged" in CliRunner().invoke(app, ["cache", "check"]).stdout
    _flip_last_byte(written)
    assert "1 of them damaged and removed" in CliRunner().invoke(app, ["cache", "check"]).stdout
    _load(folder)
    assert "MB freed" in CliRunner().invoke(app, ["cache", "clear"]).stdout and not _files(cache)


@pytest.mark.slow
def test_processes_at_once_make_one_copy(folder: Path, cache: Path) -> None:
    program = (
        "import sys, hf_compress\nfrom transformers import BertForSequenceClassification\n"
        f"for _ in range(5): model = BertForSequenceClassification.from_pretrained({str(folder)!r})\n"
        "print(sum(float(tensor.double().sum()) for tensor in model.state_dict().values()))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate()[0].strip().splitlines()[-1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0] and len(set(said)) == 1
    assert len(_files(cache)) == 1 and not list(cache.glob(".*"))
