"""A cached teacher teaches the same as a live one, and no stale answer is ever used."""

import copy
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Split, concatenate_datasets
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    set_seed,
)

from hf_compress import DistillationArguments, DistillationTrainer, Recipe
from hf_compress.distill import cache as teacher_cache
from tests.invariants.harness import KD, NAMED, SUBSETS, in_two_processes, logged, make, recipe, rows, same, trained
from tests.tiny import VOCABULARY, bert

TAUGHT = [(subset, name) for subset, name in zip(SUBSETS, NAMED, strict=True) if KD in subset]


def fixed() -> Dataset:
    """The harness's rows, all of one length."""
    return Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows()])


def uneven(count: int = 64, **labels: Callable[[int, list[int]], Any]) -> Dataset:
    """Rows of two to twelve tokens; `labels` make further columns of a row's number and tokens."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(5, VOCABULARY, (2 + number % 11,), generator=draw).tolist()
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        made.append(row | {name: label(number, ids) for name, label in labels.items()})
    return Dataset.from_list(made)


def classed(count: int = 64) -> Dataset:
    return uneven(count, label=lambda number, ids: int(ids[0] > VOCABULARY // 2 + 2))


def cached(folder: Path) -> dict[str, Any]:
    """The arguments of `harness.make` that cache a teacher passed as a model."""
    distillation = DistillationArguments()
    distillation.distill_cache = str(folder)  # Alone it would warn: the teacher is not named but given.
    return {"build": {"distillation": distillation}}


@contextmanager
def counted(teacher: nn.Module) -> Iterator[list[int]]:
    """The numbers of rows that the teacher is asked about while the context lasts."""
    asked: list[int] = []
    handle = teacher.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield asked
    handle.remove()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("teacher-*.arrow"))


@pytest.mark.parametrize(("methods", "name"), TAUGHT, ids=[name for _, name in TAUGHT])
def test_rows_of_one_length_give_the_same_bits_cached_and_live(methods: Any, name: str, tmp_path: Path) -> None:
    live = trained(tmp_path / "live", methods, data=fixed())
    kept = trained(tmp_path / "kept", methods, data=fixed(), **cached(tmp_path / "cache"))
    assert len(files(tmp_path / "cache")) == 1
    assert same(live.model.state_dict(), kept.model.state_dict())
    names = ("loss", "distill_loss", "label_loss", "grad_norm")
    assert logged(live, *names) == logged(kept, *names)


def test_padding_changes_no_more_than_the_order_of_sums(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """In float32 the last bits of a row's logits depend on what it is padded with; in float64 this is negligible."""
    for dtype, within in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        runs = [
            trained(
                tmp_path / f"{number}{dtype}",
                [KD],
                model=bert().to(dtype),
                teacher=bert(seed=1).to(dtype),
                data=classed(),
                build={"data_collator": DataCollatorWithPadding(tiny_tokenizer), **settings.get("build", {})},
            )
            for number, settings in enumerate(({}, cached(tmp_path / f"cache{dtype}")))
        ]
        live, kept = (torch.tensor(logged(run, "loss", "distill_loss")) for run in runs)
        torch.testing.assert_close(live, kept, rtol=0, atol=within)
        for name, weight in runs[0].model.named_parameters():
            torch.testing.assert_close(weight, runs[1].model.get_parameter(name), rtol=0, atol=10 * within)


def test_every_row_is_asked_about_once_and_never_again(tiny_tokenizer: Any, tmp_path: Path) -> None:
    data, teacher = classed(), bert(seed=1)
    collate = {"data_collator": DataCollatorWithPadding(tiny_tokenizer)}

    def run(folder: str, **settings: Any) -> Any:
        settings["build"] = cached(tmp_path / "cache")["build"] | collate
        return trained(tmp_path / folder, [KD], teacher=teacher, data=data, **settings)

    with counted(teacher) as asked:
        run("first", num_train_epochs=3, max_steps=-1)
    sample = 2 * teacher_cache.SAMPLE  # In batches and one by one, before anything is stored.
    assert sum(asked) == len(data) + sample
    with counted(teacher) as asked:
        run("second", num_train_epochs=1, max_steps=-1, seed=7)
    assert not asked
    assert len(files(tmp_path / "cache")) == 1


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY, "pad_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}


def choices() -> Dataset:
    row = classed(32)
    return Dataset.from_list(
        [
            {"input_ids": [ids, ids[::-1], ids[:2]], "attention_mask": [[1] * len(ids), [1] * len(ids), [1, 1]]}
            | {"label": number % 3}
            for number, ids in enumerate(row["input_ids"])
        ]
    )


HEADS: dict[str, tuple[Any, Any, Callable[[], Dataset], Any]] = {
    "classification": (
        AutoModelForSequenceClassification,
        BertConfig(**SIZES, num_labels=3),
        classed,
        DataCollatorWithPadding,
    ),
    "regression": (
        AutoModelForSequenceClassification,
        BertConfig(**SIZES, num_labels=1),
        lambda: uneven(label=lambda number, ids: ids[0] / VOCABULARY),
        DataCollatorWithPadding,
    ),
    "tokens": (
        AutoModelForTokenClassification,
        BertConfig(**SIZES, num_labels=5),
        lambda: uneven(labels=lambda number, ids: [-100, *(token % 5 for token in ids[1:])]),
        DataCollatorForTokenClassification,
    ),
    "answers": (
        AutoModelForQuestionAnswering,
        BertConfig(**SIZES),
        lambda: uneven(start_positions=lambda number, ids: 0, end_positions=lambda number, ids: 1),
        DataCollatorWithPadding,
    ),
    "choices": (AutoModelForMultipleChoice, BertConfig(**SIZES), choices, DataCollatorForMultipleChoice),
    "masked": (
        AutoModelForMaskedLM,
        BertConfig(**SIZES),
        lambda: uneven(labels=lambda number, ids: [token if place % 2 else -100 for place, token in enumerate(ids)]),
        DataCollatorForTokenClassification,
    ),
    "causal": (
        AutoModelForCausalLM,
        GPT2Config(**GPT2),
        lambda: uneven(labels=lambda number, ids: ids),
        DataCollatorForTokenClassification,
    ),
    "causal, padded on the left": (
        AutoModelForCausalLM,
        # Its positions are relative, so a row's logits do not depend on its place.
        LlamaConfig(**SIZES, pad_token_id=0),
        lambda: uneven(labels=lambda number, ids: ids),
        DataCollatorForTokenClassification,
    ),
    "seq2seq": (
        AutoModelForSeq2SeqLM,
        T5Config(**T5, pad_token_id=0, decoder_start_token_id=0),
        lambda: uneven(labels=lambda number, ids: [*ids[: 1 + number % 5], 3]),
        DataCollatorForSeq2Seq,
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_the_same_from_a_cached_teacher(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    auto_class, config, data, collator = HEADS[name]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.padding_side = "left" if "left" in name else "right"
    set_seed(0)
    student, teacher = (auto_class.from_config(copy.deepcopy(config)).double() for _ in range(2))
    given = data()
    runs = [
        trained(
            tmp_path / kind,
            [KD],
            model=copy.deepcopy(student),
            teacher=teacher,
            data=given,
            max_steps=6,
            build={"data_collator": collator(tokenizer), **settings.get("build", {})},
            gradient_accumulation_steps=2,
        )
        for kind, settings in (("live", {}), ("kept", cached(tmp_path / "cache")))
    ]
    assert files(tmp_path / "cache")
    live, kept = (torch.tensor(logged(run, "loss", "distill_loss", "label_loss")) for run in runs)
    torch.testing.assert_close(live, kept, rtol=0, atol=1e-7)
    assert live[:, 1].min() > 0
    for weight, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-7)


def reuse(folder: Path, tokenizer: Any, **changes: Any) -> int:
    """How many files of answers there are after one more run with these changes."""
    teacher = changes.pop("teacher", None) or bert(seed=1)
    data = changes.pop("data", None) or classed()
    used = changes.pop("processing_class", tokenizer)
    collator = changes.pop("data_collator", DataCollatorWithPadding(used))
    build = {"data_collator": collator, "processing_class": used, **cached(folder)["build"]}
    trained(folder / "run", [KD], teacher=teacher, data=data, build=build, max_steps=1, **changes)
    return len(files(folder))


def with_another_weight(teacher: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        teacher.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-6
    return teacher


def with_another_word(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["unheard-of"])
    return changed


def padded_on_the_left(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.padding_side = "left"
    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: {"teacher": with_another_weight(bert(seed=1))},
        lambda tokenizer: {"teacher": bert(seed=1, hidden_act="relu")},
        lambda tokenizer: {"teacher": bert(seed=1).double()},
        lambda tokenizer: {"processing_class": with_another_word(tokenizer)},
        lambda tokenizer: {"data": classed().select(range(63))},
        lambda tokenizer: {"data": classed().map(lambda row: {"input_ids": row["input_ids"][::-1]})},
        lambda tokenizer: {"data": Dataset.from_dict(classed().to_dict(), split=Split.VALIDATION)},
        lambda tokenizer: {"data_collator": DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)},
    ],
    ids=["weight", "config", "dtype", "tokenizer", "rows", "preprocessing", "split", "collator"],
)
def test_no_stale_answer_is_met(change: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    assert reuse(tmp_path, tiny_tokenizer) == 1
    assert reuse(tmp_path, tiny_tokenizer) == 1
    assert reuse(tmp_path, tiny_tokenizer, **change(tiny_tokenizer)) == 2


def test_irrelevant_changes_find_the_answers_again(tiny_tokenizer: Any, tmp_path: Path) -> None:
    assert reuse(tmp_path, tiny_tokenizer) == 1
    moved = bert(seed=1)
    moved.config._name_or_path = "elsewhere"
    again = {"teacher": moved, "model": bert(seed=5), "learning_rate": 1e-3, "seed": 3, "num_train_epochs": 2}
    assert reuse(tmp_path, tiny_tokenizer, **again) == 1


def test_answers_that_were_not_written_to_the_end_are_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    data, cache = fixed(), cached(tmp_path / "cache")
    monkeypatch.setattr(teacher_cache, "CHUNK_ROWS", 16)
    run, asked = make(tmp_path / "run", [KD], data=data, **cache), []
    teach = run._teach

    def fails(model: Any, inputs: Any) -> Any:
        asked.append(len(inputs["input_ids"]))
        if sum(asked) > 2 * teacher_cache.SAMPLE + 40:
            raise KeyboardInterrupt
        return teach(model, inputs)

    monkeypatch.setattr(run, "_teach", fails)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not files(tmp_path / "cache")
    kept = trained(tmp_path / "kept", [KD], data=data, **cache)
    live = trained(tmp_path / "live", [KD], data=data)
    assert same(kept.model.state_dict(), live.model.state_dict())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def edit(file: Path) -> None:
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def shorten(file: Path) -> None:
    """Take bytes from the answers and keep the trailer."""
    whole = file.read_bytes()
    file.write_bytes(whole[:64] + whole[128:])


def swap(file: Path) -> None:
    """Put the answers of another teacher under the name of this file."""
    trained(file.parent / "other", [KD], data=fixed(), teacher=bert(seed=2), **cached(file.parent / "others"))
    shutil.copy(files(file.parent / "others")[0], file)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "its end is missing"),
        (empty, "its end is missing"),
        (edit, "the checksum of block 1 of 1 does not match"),
        (shorten, "bytes instead of"),
        (swap, "the answers of another teacher"),
    ],
)
def test_a_damaged_cache_is_named_and_made_anew(
    harm: Callable[[Path], None], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = trained(tmp_path / "first", [KD], data=fixed(), **cached(tmp_path / "cache"))
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    harm(file)
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        again = trained(tmp_path / "again", [KD], data=fixed(), **cached(tmp_path / "cache"))
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert same(first.model.state_dict(), again.model.state_dict())
    assert f"{file} is damaged" in caplog.text and said in caplog.text
    assert file.read_bytes() == whole
    assert {path.suffix for path in file.parent.iterdir() if path.is_file()} == {".arrow", ".lock"}


@pytest.mark.parametrize("suffix", [".arrow", ".lock"])
def test_a_folder_at_the_name_of_a_file_is_one_sentence(suffix: str, tmp_path: Path) -> None:
    run = make(tmp_path / "run", [KD], data=fixed(), **cached(tmp_path / "cache"))
    run.train()
    (file,) = files(tmp_path / "cache")
    name = file.with_suffix(suffix)
    name.unlink()
    name.mkdir()
    again = make(tmp_path / "again", [KD], data=fixed(), **cached(tmp_path / "cache"))
    with pytest.raises(ValueError, match=rf"`--distill_cache` cannot .*{re.escape(str(name))}.* Remove what is there"):
        again.train()


def test_a_teacher_retrained_at_the_same_path_is_asked(tmp_path: Path) -> None:
    plan = {"model": bert(), "data": fixed()}
    for seed, number in ((1, 1), (2, 2), (1, 2)):
        bert(seed=seed).save_pretrained(tmp_path / "teacher")
        options = DistillationArguments(
            distill_teacher=str(tmp_path / "teacher"), distill_cache=str(tmp_path / "cache")
        )
        trained(tmp_path / "run", plan=Recipe(options), build={"distillation": options}, max_steps=1, **plan)
        assert len(files(tmp_path / "cache")) == number


def test_other_rows_with_the_same_fingerprint_are_asked_about(tmp_path: Path) -> None:
    """As when the file of a data set is edited: `datasets` keeps the fingerprint."""
    other = fixed().map(lambda row: {"input_ids": row["input_ids"][::-1], "attention_mask": [1] * 8})
    given = fixed()
    other._fingerprint = given._fingerprint
    for data, number in ((given, 1), (other, 2), (given.select(range(63, -1, -1)), 3)):
        trained(tmp_path / "run", [KD], data=data, max_steps=1, **cached(tmp_path / "cache"))
        assert len(files(tmp_path / "cache")) == number


@pytest.mark.parametrize(
    "arranged",
    [
        lambda data: data,
        lambda data: data.shuffle(seed=3),
        lambda data: data.select([5, 60, 2, 5, 33]),
        lambda data: data.select(range(7, 40)),
        lambda data: data.shuffle(seed=3).with_format("torch", columns=["input_ids", "attention_mask", "label"]),
        lambda data: concatenate_datasets([data, data.select([1, 2])]),
    ],
    ids=["whole", "shuffled", "selected", "range", "torch", "concatenated"],
)
def test_the_training_set_stays_the_training_set(arranged: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """The file holds answers only, and each row keeps its columns and gets its own answer."""
    teacher, build = bert(seed=1), {"data_collator": DataCollatorWithPadding(tiny_tokenizer)}
    data = arranged(classed().add_column("text", [f"row {number}" * 9 for number in range(64)]))
    run = make(tmp_path, [KD], data=data, teacher=teacher, build=cached(tmp_path / "cache")["build"] | build)
    answered, _ = run._answered(data, run.data_collator)
    assert len(answered) == len(data)
    for row, given in zip(answered.with_format(None), data.with_format(None), strict=True):
        expected = teacher(input_ids=torch.tensor([given["input_ids"]])).logits[0]
        torch.testing.assert_close(torch.tensor(row.pop("teacher_logits")), expected, rtol=0, atol=1e-5)
        assert row == given
    (file,) = files(tmp_path / "cache")
    assert b"row 1" not in file.read_bytes()


@pytest.mark.parametrize("name", HEADS)
def test_the_planned_size_is_that_of_the_file(
    name: str, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    auto_class, config, data, collator = HEADS[name]
    model, planned = auto_class.from_config(copy.deepcopy(config)), []
    size = teacher_cache.TeacherCache._bytes
    monkeypatch.setattr(
        teacher_cache.TeacherCache, "_bytes", lambda self, *given: planned.append(size(self, *given)) or planned[0]
    )
    build = cached(tmp_path)["build"] | {"data_collator": collator(tiny_tokenizer)}
    given = concatenate_datasets([data()] * 20)
    if "left" not in name:
        trained(tmp_path, [KD], model=model, teacher=copy.deepcopy(model), data=given, build=build, max_steps=1)
        (file,) = files(tmp_path)
        assert file.stat().st_size == pytest.approx(planned[0], rel=0.05, abs=3000)


def test_the_cache_is_filled_at_the_batch_size_that_fits(tmp_path: Path) -> None:
    teacher = bert(seed=1)

    def full(module: Any, arguments: Any, named: Any) -> None:
        if len(named["input_ids"]) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    teacher.register_forward_pre_hook(full, with_kwargs=True)
    run = trained(
        tmp_path / "run",
        [KD],
        teacher=teacher,
        data=fixed(),
        auto_find_batch_size=True,
        per_device_train_batch_size=16,
        **cached(tmp_path / "cache"),
    )
    assert run.state.train_batch_size <= 8 and run.state.global_step == 12
    assert all(loss > 0 for (loss,) in logged(run, "distill_loss"))


def test_answers_are_a_memory_mapped_column_in_row_order(tiny_tokenizer: Any, tmp_path: Path) -> None:
    data, teacher = classed().shuffle(seed=1), bert(seed=1)
    build = {"data_collator": DataCollatorWithPadding(tiny_tokenizer), **cached(tmp_path)["build"]}
    run = make(tmp_path / "run", [KD], data=data, teacher=teacher, build=build)
    answered, _ = run._answered(data, run.data_collator)
    assert [Path(file["filename"]) for file in answered.cache_files] == files(tmp_path)
    assert answered.column_names == [*data.column_names, "teacher_logits"]
    assert answered.features["teacher_logits"].feature.dtype == "float32"
    for row, given in zip(answered, data, strict=True):
        assert row["input_ids"] == given["input_ids"]
        expected = teacher(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(torch.tensor(row["teacher_logits"]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"remove_unused_columns": False},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_num_workers": 1},
        {"bf16": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_trainer_change_nothing(settings: Any, tmp_path: Path) -> None:
    live = trained(tmp_path / "live", [KD], data=fixed(), **settings)
    kept = trained(tmp_path / "kept", [KD], data=fixed(), **cached(tmp_path / "cache"), **settings)
    assert same(live.model.state_dict(), kept.model.state_dict())
    assert kept.evaluate(fixed())["eval_loss"] == live.evaluate(fixed())["eval_loss"]


def test_rows_that_are_tensors_already_stay_so(tmp_path: Path) -> None:
    live = trained(tmp_path / "live", [KD], data=fixed().with_format("torch"))
    kept = trained(tmp_path / "kept", [KD], data=fixed().with_format("torch"), **cached(tmp_path / "cache"))
    assert same(live.model.state_dict(), kept.model.state_dict())


def named(folder: Path | None = None, **more: Any) -> dict[str, Any]:
    """The arguments of `harness.make` for a model that teaches itself, cached in `folder` or live."""
    place = None if folder is None else str(folder)
    plan = Recipe(DistillationArguments(distill_teacher="self", distill_cache=place, **more))
    return {"plan": plan, "build": {"distillation": plan.distillation}}


def test_a_base_model_teaches_its_adapter_from_the_cache(tmp_path: Path) -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        return get_peft_model(bert(), LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))

    live = trained(tmp_path / "live", model=adapted(), data=fixed(), **named())
    kept = trained(tmp_path / "kept", model=adapted(), data=fixed(), **named(tmp_path / "cache"))
    assert same(live.model.state_dict(), kept.model.state_dict())
    torch.manual_seed(9)  # Another start of the adapter is the same teacher.
    other = get_peft_model(bert(), LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    trained(tmp_path / "other", model=other, data=fixed(), **named(tmp_path / "cache"))
    assert len(files(tmp_path / "cache")) == 1


def test_a_run_begun_without_a_cache_may_resume_with_one(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 6, "data": fixed()}
    whole = trained(tmp_path / "whole", model=bert(num_hidden_layers=3), **saving, **named(distill_student_layers="2"))
    resumed = make(
        tmp_path / "resumed",
        model=bert(num_hidden_layers=3),
        **saving,
        **named(tmp_path / "cache", distill_student_layers="2"),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def train_beside(folder: str) -> None:
    teacher = bert(seed=1)
    with counted(teacher) as asked:
        run = trained(f"{folder}/run", [KD], teacher=teacher, data=fixed(), **cached(Path(folder)))
    Path(folder, f"asked-{run.args.process_index}").write_text(str(sum(asked)))
    Path(folder, f"loss-{run.args.process_index}").write_text(str(logged(run, "loss")))


@pytest.mark.slow
def test_of_several_processes_one_asks_and_the_others_wait(tmp_path: Path) -> None:
    assert in_two_processes(train_beside, str(tmp_path)) == [0, 0]
    asked = sorted(int((tmp_path / f"asked-{rank}").read_text()) for rank in range(2))
    assert asked == [0, 64 + 2 * teacher_cache.SAMPLE]
    assert len(files(tmp_path)) == 1


def test_by_default_answers_are_beside_the_caches_of_datasets(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    trained(tmp_path / "run", [KD], data=fixed(), **cached(Path("auto")))
    assert len(files(tmp_path / "teachers")) == 1


def test_rows_without_columns_are_refused_before_training(tmp_path: Path) -> None:
    for data, said in (
        (rows(), "`datasets.Dataset`; got builtins.list"),
        (fixed().to_iterable_dataset(), "`datasets.Dataset`; got datasets.IterableDataset"),
        (fixed().with_transform(lambda row: row), "`Dataset.set_transform`"),
        (fixed().add_column("teacher_logits", [[0.0, 1.0]] * 64), "the column `teacher_logits`, which .* already has"),
    ):
        teacher = {"teacher": bert(seed=1), "train_dataset": data, "model": bert()}
        args = make(tmp_path, data=rows()).args
        with pytest.raises(ValueError, match=f"`--distill_cache`.*{said}"):
            DistillationTrainer(args=args, **teacher, **cached(tmp_path)["build"])
        run = make(tmp_path, [KD], data=fixed(), **cached(tmp_path))
        run.train_dataset = data  # Replaced after the trainer was built.
        with pytest.raises(ValueError, match=f"`--distill_cache`.*{said}"):
            run.train()


def test_a_teacher_that_is_not_finite_is_named_first(tmp_path: Path) -> None:
    teacher = bert(seed=1)
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    for settings in ({}, cached(tmp_path / "cache")):
        with pytest.raises(ValueError, match=r"teacher's weights are not finite.*layer.1.output.dense.weight"):
            make(tmp_path / "run", [KD], teacher=teacher, data=fixed(), **settings)


def test_answers_that_are_nan_are_not_cached(tmp_path: Path) -> None:
    """Logits like those of a float16 teacher that overflows, for some rows only."""
    teacher = bert(seed=1)

    def overflow(module: Any, arguments: Any, named: Any, output: Any) -> Any:
        output.logits[(named["input_ids"] == fixed()[37]["input_ids"][0]).any(1)] = float("nan")
        return output

    teacher.register_forward_hook(overflow, with_kwargs=True)
    run = make(tmp_path / "run", [KD], teacher=teacher, data=fixed(), **cached(tmp_path / "cache"))
    with pytest.raises(ValueError, match="`--distill_cache`: the teacher's answers to some rows are NaN"):
        run.train()
    assert not files(tmp_path / "cache")


def test_a_collator_that_draws_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_config(BertConfig(**SIZES))
    build = {"data_collator": DataCollatorForLanguageModeling(tiny_tokenizer), **cached(tmp_path)["build"]}
    run = make(tmp_path / "run", [KD], model=model, teacher=copy.deepcopy(model), data=uneven(), build=build)
    with pytest.raises(ValueError, match="`--distill_cache` cannot be used with a data collator that makes different"):
        run.train()


def test_answers_that_depend_on_the_padding_are_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    collator = DataCollatorWithPadding(tiny_tokenizer)
    collator.tokenizer = copy.deepcopy(tiny_tokenizer)
    collator.tokenizer.model_input_names = ["input_ids"]
    build = {"data_collator": collator, **cached(tmp_path)["build"]}
    run = make(tmp_path / "run", [KD], data=classed().remove_columns("attention_mask"), build=build)
    with pytest.raises(ValueError, match="answers to a row alone and in a batch differ.*Pass the mask"):
        run.train()
    left = DataCollatorWithPadding(padded_on_the_left(tiny_tokenizer))
    run = make(tmp_path / "run", [KD], data=classed(), build={"data_collator": left, **cached(tmp_path)["build"]})
    with pytest.raises(ValueError, match="pad on the right"):
        run.train()


def test_answers_that_need_too_much_space_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    size = 64 * (2 * 4 + 4)  # Two logits and an offset a row.
    monkeypatch.setattr(teacher_cache, "LARGEST", size - 1)
    run = make(tmp_path / "run", [KD], data=fixed(), **cached(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"`--distill_cache` would take about 0.0 GiB in .* \(64 rows of 0.0 KiB\)"):
        run.train()
    assert not files(tmp_path / "cache")
    monkeypatch.setattr(teacher_cache, "LARGEST", size)
    run.train()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = make(tmp_path / "run", [KD], data=fixed(), **cached(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="`--distill_cache .*must be a writable folder"):
        run.train()
    with pytest.raises(ValueError, match="`--distill_cache` must be a folder or `auto`, got an empty name"):
        DistillationArguments(distill_teacher="self", distill_cache=" ")


def test_a_cache_without_a_teacher_has_no_effect_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="`--distill_cache somewhere` has no effect without a teacher"):
        make(tmp_path, plan=recipe(()), build={"distillation": DistillationArguments(distill_cache="somewhere")})
