"""Loading a packed folder in every way, the memory that it takes, and the remains of an interrupted save."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.inventory import tensors
from hf_compress.checkpoint.quantizer import CompressionQuantizer
from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable, quantizable
from hf_compress.prune.arguments import PruningArguments
from hf_compress.recipe import Recipe
from tests.quantized import quantized
from tests.tiny import bert

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(pruning=PruningArguments(prune_sparsity=0.6))
STEP = 1e-4  # The constant of fixed steps. A model that was not trained is hardly sensitive to its weights.


def _pruned(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for target in prunable(model):
            count = int(0.6 * target.weight.numel()) + 1
            target.weight[target.weight.abs() <= target.weight.abs().flatten().kthvalue(count).values] = 0
    return model


@pytest.fixture
def model(tiny_bert: PreTrainedModel) -> PreTrainedModel:
    return _pruned(tiny_bert)


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    return save_compressed(model, tmp_path / "packed", RECIPE)


def _quantized(model: PreTrainedModel, folder: Path) -> Path:
    """The folder of `model` with its weights rounded to integers, without training."""
    names = [target.name for target in quantizable(model)]
    config = CompressionConfig(scheme=asdict(SCHEMES["int8-weight"].grids), quantized=names)
    model.hf_quantizer, model.config.quantization_config = CompressionQuantizer(config), config
    model.save_pretrained(folder)
    return folder


def _same(loaded: PreTrainedModel, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> bool:
    state = loaded.state_dict()
    return all(torch.equal(state[name].cpu(), tensor.to(dtype)) for name, tensor in model.state_dict().items())


def test_the_same_model_gives_the_same_bytes(model: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    again = save_compressed(model, tmp_path / "again", RECIPE)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_shards_load_and_a_foreign_one_is_refused(
    model: PreTrainedModel, folder: Path, make_bert: Any, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(shards, max_shard_size="6KB")
    files = sorted(shards.glob("*.safetensors"))
    assert len(files) > 2
    assert _same(AutoModelForSequenceClassification.from_pretrained(shards), model)
    # From a model with other tensors, so its seal differs.
    save_compressed(_pruned(make_bert(num_hidden_layers=1)), tmp_path / "other", RECIPE)
    files[1].write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="was not saved together with the other tensors"):
        AutoModelForSequenceClassification.from_pretrained(shards)


def test_shards_of_two_runs_of_one_recipe_are_refused(make_bert: Any, tmp_path: Path) -> None:
    """The seal binds contents: same names, same shapes and same configuration are not enough."""
    folders = []
    for seed in (0, 1):
        save_compressed(_pruned(make_bert(seed=seed)), tmp_path / f"one{seed}", RECIPE)
        folders.append(tmp_path / f"shards{seed}")
        whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"one{seed}")
        whole.save_pretrained(folders[-1], max_shard_size="6KB")
    mine, theirs = (sorted(folder.glob("*.safetensors")) for folder in folders)
    mine[1].write_bytes(theirs[1].read_bytes())
    with pytest.raises(ValueError, match="was not saved together with the other tensors"):
        AutoModelForSequenceClassification.from_pretrained(folders[0])
    with pytest.raises(ValueError, match="was not saved together with the other tensors"):
        tensors(folders[0])


@pytest.mark.parametrize("size", ["5GB", "6KB"], ids=["one file", "shards"])
def test_a_repository_in_the_hub_s_cache_loads_by_its_name(
    size: str, model: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    repository, commit = tmp_path / "cache" / "models--someone--small", "0" * 40
    (repository / "snapshots").mkdir(parents=True), (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(
        repository / "snapshots" / commit, max_shard_size=size
    )
    assert _same(
        AutoModelForSequenceClassification.from_pretrained("someone/small", cache_dir=tmp_path / "cache"), model
    )


def test_weights_may_come_from_a_state_dict_instead(model: PreTrainedModel, folder: Path, make_bert: Any) -> None:
    config = AutoConfig.from_pretrained(folder)
    other = make_bert(seed=1)
    assert _same(type(model).from_pretrained(None, config=config, state_dict=other.state_dict()), other)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_a_device_map_changes_no_bit(device_map: Any, model: PreTrainedModel, folder: Path) -> None:
    assert _same(AutoModelForSequenceClassification.from_pretrained(folder, device_map=device_map), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_come_in_the_dtype_that_is_asked_for(dtype: torch.dtype, model: PreTrainedModel, folder: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    assert loaded.dtype == dtype and _same(loaded, model, dtype)


def test_several_threads_load_the_same_bits(make_bert: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = _pruned(make_bert(hidden_size=256, intermediate_size=1100, num_hidden_layers=1))
    folder = save_compressed(model, tmp_path / "packed", RECIPE)
    torch.set_num_threads(3)
    try:
        assert _same(AutoModelForSequenceClassification.from_pretrained(folder), model)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("steps", [False, True], ids=["pruned", "steps"])
@pytest.mark.parametrize("offload", [False, True], ids=["cpu and disk", "disk"])
def test_weights_that_do_not_fit_are_left_on_the_disk(
    offload: bool, steps: bool, model: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    if steps:
        folder = quantized(model, tmp_path / "steps", "int8", step=STEP)
    places = {"bert": "disk" if offload else "cpu", "classifier": "cpu" if offload else "disk"}
    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "offload"
    ).eval()
    inputs = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(loaded(inputs).logits, model(inputs).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cast", [False, True], ids=["loaded", "cast"])
def test_any_dtype_is_saved_with_the_same_integers_and_steps(
    dtype: torch.dtype, cast: bool, tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    folder = quantized(tiny_bert, tmp_path / "steps", "int8", step=STEP)
    exact = AutoModelForSequenceClassification.from_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32 if cast else dtype)
    (loaded.to(dtype) if cast else loaded).save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again", dtype=torch.float32)
    for name, layer in compressed_layers(exact).items():
        other = again.get_submodule(name)
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.step, other.step), name


def test_tied_layers_go_on_with_the_steps_of_their_weight(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0)
    folder = quantized(T5ForConditionalGeneration(config), tmp_path / "steps", "int8", step=1e-2)
    model = T5ForConditionalGeneration.from_pretrained(folder)
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        loaded = model(input_ids=ids, decoder_input_ids=ids).logits
        for parameter in model.parameters():
            parameter.add_(0)  # Layers round from here on.
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, loaded)
    owners = [layer for layer in compressed_layers(model).values() if layer.weight is model.shared.weight]
    assert len(owners) == 4 and all(torch.equal(layer.step, model.shared.step) for layer in owners)


def test_several_threads_refuse_damage_by_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.unlink()
    file.write_bytes(data)
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="classifier.weight: the checksum of a packed tensor does not match"):
            AutoModelForSequenceClassification.from_pretrained(folder)
    finally:
        torch.set_num_threads(1)


PEAK = """
import sys
from pathlib import Path
import hf_compress
from transformers import AutoModelForSequenceClassification

def memory(field):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return 1024 * int(line.split()[1])

AutoModelForSequenceClassification.from_pretrained(sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
before = memory("VmRSS")
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
print(memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The folder of a model whose weights outweigh everything else in a process, and the bytes of its weights."""
    model = bert(vocab_size=40_000, hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    folder = _quantized(model, tmp_path_factory.mktemp("large") / "model")
    return folder, [parameter.nbytes for parameter in model.parameters()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "3"])
def test_loading_takes_little_more_memory_than_the_dense_model(
    threads: str, folder: Path, large: tuple[Path, list[int]]
) -> None:
    path, sizes = large
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
    )
    # The mapped pages of the file count too: a quarter of the model. Decoding works in chunks.
    assert 0.9 * sum(sizes) < int(done.stdout) < sum(sizes) + max(sizes)


SAVE = """
import sys
import torch
import hf_compress
from hf_compress.checkpoint.save import save_compressed
from hf_compress.recipe import Recipe
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
recipe = Recipe.load(sys.argv[1] + "/recipe.json")
print("saving", flush=True)
save_compressed(model, sys.argv[2], recipe)
print("saved", flush=True)
"""


def _killed(source: Path, target: Path, seconds: float) -> str:
    """The output of a process that saves `source` as `target` and is killed so many seconds after it starts saving."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE, str(source), str(target)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.communicate()[0]


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_the_whole_folder_or_none(
    make_bert: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = _pruned(make_bert(vocab_size=20_000, hidden_size=256, intermediate_size=1024, num_hidden_layers=4))
    source, target, rng = save_compressed(model, tmp_path / "source", RECIPE), tmp_path / "target", random.Random(0)
    begun = time.monotonic()
    save_compressed(model, tmp_path / "timed", RECIPE)
    length, outcomes = time.monotonic() - begun, []
    for _ in range(12):
        _killed(source, target, rng.uniform(0, 1.3 * length))
        outcomes.append(target.exists())
        if target.exists():
            assert _same(AutoModelForSequenceClassification.from_pretrained(target), model)
            target.rename(tmp_path / f"whole-{len(outcomes)}")
    # Files that remain aside do not block the next save.
    save_compressed(model, target, RECIPE)
    assert False in outcomes


@pytest.mark.parametrize("step", ["config", "weights", "half of the weights", "recipe"])
def test_a_save_that_stops_leaves_nothing_behind(
    step: str, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def half(tensors: Any, path: Any, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "config":
            patch.setattr(type(model.config), "save_pretrained", stop)
        elif step == "recipe":
            patch.setattr(Recipe, "save", stop)
        else:
            patch.setattr("transformers.modeling_utils.safe_save_file", stop if step == "weights" else half)
        with pytest.raises(KeyboardInterrupt):
            save_compressed(model, tmp_path / "packed", RECIPE)
    assert not (tmp_path / "packed").exists()
    save_compressed(model, tmp_path / "packed", RECIPE)
    assert _same(AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed"), model)
    assert {path.name for path in tmp_path.iterdir()} == {"packed"}
