"""A speed-up is refused before training where this machine cannot reach it; report and card say what was reached."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_compress import (
    PruningArguments,
    QuantizationArguments,
    Recipe,
    compress,
    finish,
    remove_groups,
)
from hf_compress.callbacks import progress
from hf_compress.goals import SpeedArguments
from hf_compress.launch import speed_goal
from hf_compress.launch.flags import take_flags
from hf_compress.models.blocks import find_groups
from hf_compress.prune import Course, LatencyTable
from hf_compress.prune.callback import KEPT
from hf_compress.report.report import Report
from hf_compress.speed import measuring
from tests.architectures.families import FAMILIES
from tests.architectures.methods import Bench
from tests.invariants.harness import same
from tests.tiny import NO_DROPOUT, bert

COURSES = (
    Course("neurons", count=64, blocks=2, kept=[2, 32, 64], shares=[0.6, 0.8, 1.0]),
    Course("heads", count=2, blocks=2, kept=[1, 2], shares=[0.9, 1.0]),
)
TABLE = LatencyTable("1 x 32 tokens", 0.01, 0.5, COURSES, "int8", "ONNX Runtime 1.23, 1 thread", "a CPU, 2 cores")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What tables were asked for; all are `TABLE`."""
    calls: list[dict[str, Any]] = []

    def cached(model_class: type, config: Any, quantization: Any, kinds: Any, **options: Any) -> LatencyTable:
        calls.append({"scheme": quantization.quant_scheme, "kinds": kinds, **options})
        return TABLE

    monkeypatch.setattr(speed_goal, "cached_table", cached)
    return calls


def trainer(folder: Path, rows: Dataset, intermediate_size: int = 64, **more: Any) -> Trainer:
    settings = {"max_steps": 8, "learning_rate": 1e-4, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(folder), **settings | more)
    model = bert(**NO_DROPOUT, intermediate_size=intermediate_size)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def faster(speedup: float, length: int = 32, **methods: Any) -> Recipe:
    return Recipe(speed=SpeedArguments(speedup, compress_speedup_length=length), **methods)


def test_more_than_the_machine_can_do_is_refused(asked: list, tiny_dataset: Dataset, tmp_path: Path) -> None:
    neurons = PruningArguments(prune_pattern="neurons")
    for number, (plan, said) in enumerate(
        [
            (
                faster(2.5),
                r"`--compress_speedup 2.5` is more .*: 2\.00 at 1 x 32 tokens .*neurons and heads\. Lower it",
            ),
            (faster(2.5, pruning=neurons), r"let neurons and heads go \(`--prune_pattern neurons\+heads`\)"),
        ]
    ):
        run = compress(trainer(tmp_path / str(number), tiny_dataset), plan)
        with pytest.raises(ValueError, match=said):
            run.train()
        assert run.state.global_step == 0
    assert [call["kinds"] for call in asked] == [("neurons", "heads"), ("neurons",)]


def test_a_run_is_resumed_where_its_speed_up_is_impossible(
    asked: list, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    run = compress(trainer(tmp_path, tiny_dataset, **plan), faster(1.5))
    run.train()
    chosen = progress(run.state)[KEPT]
    slower = replace(TABLE, least=0.9, courses=tuple(replace(one, shares=[0.9] * len(one.shares)) for one in COURSES))
    monkeypatch.setattr(speed_goal, "cached_table", lambda *given, **options: slower)
    resumed = compress(trainer(tmp_path, tiny_dataset, **plan), faster(1.5))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert progress(resumed.state)[KEPT] == chosen
    assert same(resumed.model.state_dict(), run.model.state_dict())


@pytest.mark.parametrize("uniform", [False, True])
def test_a_model_that_was_made_smaller_is_refused(
    uniform: bool, asked: list, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = trainer(tmp_path, tiny_dataset)
    with torch.no_grad():
        for layer in run.model.bert.encoder.layer:
            layer.output.dense.weight[:, :16] = 0
    remove_groups(run.model, ["neurons"], uniform=uniform)
    with pytest.raises(
        ValueError, match="all its neurons and heads, but this BertForSequenceClassification was loaded"
    ):
        compress(run, faster(1.5, pruning=PruningArguments(prune_pattern="heads")))
    assert not asked


def test_longer_texts_than_the_model_reads_are_refused(asked: list, tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--compress_speedup_length` may be at most 32 for this model; got 128"):
        compress(trainer(tmp_path, tiny_dataset), faster(1.5, length=128))
    assert not asked


def test_a_model_that_the_table_is_not_for_is_refused(asked: list, tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"with all its neurons and heads, but bert\.encoder\.layer\.0 has other"):
        compress(trainer(tmp_path, tiny_dataset, intermediate_size=48), faster(1.5))


@pytest.mark.parametrize("speedup", [1.0, -2.0, float("inf"), float("nan")])
def test_speed_ups_out_of_range_are_refused(speedup: float) -> None:
    with pytest.raises(ValueError, match="`--compress_speedup` must be a number above 1; got"):
        SpeedArguments(speedup)


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match="`--compress_speedup_runtime` must be of onnx, openvino; got 'torch'"):
        SpeedArguments(2.0, compress_speedup_runtime="torch")


@pytest.mark.parametrize("name", ["vit", "whisper"])
def test_images_and_sounds_get_as_fast_as_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (family,) = (one for one in FAMILIES if one.name == name)
    bench = Bench(family, tmp_path)
    blocks = find_groups(bench.model(), ["neurons", "heads"])
    sizes = {(block.kind, block.count): [one.kind for one in blocks].count(block.kind) for block in blocks}
    courses = tuple(Course(*size, many, [1, size[1]], [0.4, 1.0]) for size, many in sizes.items())
    table = replace(TABLE, courses=courses, least=0.2)
    monkeypatch.setattr(speed_goal, "cached_table", lambda *_, **__: table)
    run = compress(bench.trainer(bench.model(), "run"), Recipe(speed=SpeedArguments(1.5)))
    run.train()
    assert table.speedup(blocks, progress(run.state)[KEPT]) >= 1.5


@pytest.mark.parametrize("option", ["compress_speedup_batch", "compress_speedup_length"])
def test_empty_batches_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"`--{option}` must be at least 1; got 0"):
        SpeedArguments(2.0, **{option: 0})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"pruning": PruningArguments(0.5)}, r"`--prune_sparsity` must be 0; got 0\.5\. Leave one of them out"),
        ({"pruning": PruningArguments(prune_pattern="4x1")}, "needs a `--prune_pattern` of whole groups: neurons,"),
        ({"quantization": QuantizationArguments("int4-weight")}, "consecutive inputs share a scale. Choose a scheme"),
    ],
)
def test_what_gives_no_speed_is_refused(methods: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        faster(2.0, **methods)


def test_the_rest_of_the_recipe_is_completed() -> None:
    recipe = faster(2.0)
    assert recipe.name == "2x-neurons-heads+int8"
    assert recipe.pruning.prune_pattern == "neurons+heads"
    kept = faster(
        2.0, pruning=PruningArguments(prune_pattern="heads"), quantization=QuantizationArguments("int8-weight")
    )
    assert kept.name == "2x-heads+int8-weight"
    with pytest.raises(ValueError, match="`--prune_keep auto` has no effect without `--compress_speedup`"):
        Recipe(pruning=recipe.pruning)
    with pytest.warns(UserWarning, match="`--compress_speedup_batch 4`|has no effect without `--compress_speedup`"):
        Recipe(speed=SpeedArguments(compress_speedup_batch=4))


def test_a_new_speed_up_chooses_again(tmp_path: Path) -> None:
    pruning = PruningArguments(prune_pattern="neurons", prune_keep=["bert.encoder.layer.0=5"])
    faster(2.0, pruning=pruning).save(tmp_path / "recipe.json")
    argv = ["train.py", "--compress_config", str(tmp_path / "recipe.json")]
    again = take_flags(list(argv)).recipe
    assert again.pruning.prune_keep == ["bert.encoder.layer.0=5"]
    assert take_flags([*argv, "--compress_speedup", "1.5"]).recipe.pruning.prune_keep == ["auto"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formats", "runtime"),
    [([], "onnx"), (["onnx"], "onnx"), (["openvino"], "openvino")],
    ids=["packed", "onnx", "openvino"],
)
def test_report_and_card_say_what_was_reached(
    asked: list, formats: list[str], runtime: str, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: Any
) -> None:
    ran: list[str] = []
    load, package = measuring.RUNTIMES[runtime]

    def watched(path: Path, config: Any) -> Any:
        ran.append(path.suffix)
        return load(path, config)

    monkeypatch.setattr(measuring, "RUNTIMES", {runtime: (watched, package)})
    speed = SpeedArguments(1.5, compress_speedup_length=32, compress_speedup_runtime=runtime)
    run = compress(trainer(tmp_path, tiny_dataset), Recipe(speed=speed))
    run.train()
    report = finish(run, main_metric="loss", formats=formats)
    assert report is not None
    assert ran == [".onnx", ".xml" if formats == ["openvino"] else ".onnx"]
    assert {call["runtime"] for call in asked} == {runtime}
    folder = tmp_path / "compressed"
    speed = Report.load(folder).speed
    assert speed is not None
    assert (speed.target, speed.shape) == (1.5, "1 x 32 tokens")
    assert speed.predicted >= 1.5
    assert speed.measured.interval[0] <= speed.measured.ratio <= speed.measured.interval[1]
    kept = report.recipe.pruning.keeps
    assert kept is not None
    left = {(one.kind, number) for one in report.structure for number in one.after}
    assert left <= {("heads" if "attention" in name else "neurons", number) for name, number in kept.items()}
    assert left
    assert Recipe.load(folder / "recipe.json") == report.recipe
    card = (folder / "README.md").read_text()
    assert "The target was 1.5 times the speed of the whole model in the same number format, at 1 x 32 tokens" in card
    assert ("The target is missed." in card) == (speed.measured.interval[1] < 1.5)
