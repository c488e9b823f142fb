"""Losses on layers in a Trainer: what they learn, which layers they pair, what they keep, and what they refuse."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    ConvNextConfig,
    DistilBertConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_compress import DistillationArguments, QuantizationArguments, Recipe, compress, save_compressed, student_from
from hf_compress.distill import LAYER_LOSSES, DistillationMixin, DistillationTrainer
from hf_compress.distill.capturing import CAPTURED
from hf_compress.distill.pairing import pair_layers
from hf_compress.models.heads import find_head
from hf_compress.models.targets import PROJECTIONS, prunable, quantizable
from hf_compress.quantize.spending import other_bytes
from hf_compress.report.evaluation import logit_difference
from tests.invariants.harness import KD, METHODS, SETTINGS, adapted, logged, make, rows, same
from tests.invariants.test_heads import VIT, t5, wav2vec2
from tests.invariants.test_images_and_sounds import CASES, rows_for
from tests.invariants.test_images_and_sounds import build as build_media
from tests.tiny import NO_DROPOUT, VOCABULARY, bert

TERMS = [loss.term for loss in LAYER_LOSSES.values()]
WIDE = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4}


def build(
    folder: Path, *losses: str, methods: Any = (KD,), layers: str = "uniform", options: Any = None, **more: Any
) -> Any:
    """Build a run with layerwise losses."""
    chosen = DistillationArguments(distill_layer_loss=list(losses), distill_layers=layers, **options or {})
    models = {"model": bert(**NO_DROPOUT), "teacher": bert(seed=1, **NO_DROPOUT)}
    return make(folder, methods, **{"build": {"distillation": chosen}} | models | more)


def pairs(run: DistillationTrainer) -> list[tuple[int, int]]:
    """Return the pairs of layers that a run compares."""
    assert run._layerwise is not None
    return [(ours[1], theirs[1]) for ours, theirs in run._layerwise.couples]


# --- learning --------------------------------------------------------------------------------------------------------


def learned(folder: Path, loss: str, steps: int, **sizes: Any) -> tuple[float, float]:
    """Return the first and the last loss of a random student on the fixed rows that its random teacher sees."""
    teacher = bert(seed=1, num_hidden_layers=1, **NO_DROPOUT | sizes)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight *= 5 if weight.ndim > 1 else 1  # So that maps are not almost uniform.
    run = build(
        folder,
        f"{loss}=1",
        options={"distill_alpha": 1.0},
        model=bert(num_hidden_layers=1, **NO_DROPOUT),
        teacher=teacher,
        data=rows(8),
        max_steps=steps,
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    run.train()
    found = [line[0] for line in logged(run, LAYER_LOSSES[loss].term)]
    return found[0], found[-1]


def test_a_random_student_learns_a_wider_teachers_states(tmp_path: Path) -> None:
    first, last = learned(tmp_path, "hidden", 60, **WIDE)
    assert last < 0.05 * first


@pytest.mark.slow
@pytest.mark.parametrize("loss", LAYER_LOSSES)
@pytest.mark.parametrize("sizes", [{}, WIDE], ids=["as wide", "wider"])
def test_every_layer_loss_falls_to_nearly_nothing(loss: str, sizes: dict[str, int], tmp_path: Path) -> None:
    first, last = learned(tmp_path, loss, 200, **sizes)
    assert last < (0.01 if sizes else 0.001) * first * (10 if loss == "relations" else 1)


def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    run = build(tmp_path, "hidden=3", "relations=0.25", options={"distill_alpha": 0.7}, max_steps=3)
    run.train()
    for loss, distilled, labelled, hidden, relations in logged(
        run, "loss", "distill_loss", "label_loss", "hidden_loss", "relations_loss"
    ):
        assert loss == pytest.approx(0.7 * distilled + 0.3 * labelled + 3 * hidden + 0.25 * relations, rel=1e-4)


def test_hidden_states_are_those_that_transformers_returns(tmp_path: Path) -> None:
    run = build(tmp_path, "hidden=1", "embeddings=1")
    inputs = run._prepare_inputs(run.data_collator(rows(4)))
    with torch.no_grad(), run._layers_attached(), run._captured("student"):
        embeddings, *states = run.model(**inputs, output_hidden_states=True).hidden_states
        found = run.model(**inputs)[CAPTURED]
    assert same(list(found), [*states, embeddings])


def test_padding_has_no_effect_on_layer_losses(tmp_path: Path) -> None:
    longer = [
        {
            name: value if name == "labels" else torch.cat([value, torch.zeros(5, dtype=torch.long)])
            for name, value in row.items()
        }
        for row in rows()
    ]
    found = []
    for data in (rows(), longer):
        run = build(tmp_path, *(f"{name}=1" for name in LAYER_LOSSES), data=data, max_steps=3)
        run.train()
        found.append(logged(run, *TERMS))
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)


def test_layer_losses_draw_no_random_numbers(tmp_path: Path) -> None:
    """The labels' loss of the first step sees the same batch and dropout with and without projections."""
    found = []
    for losses in ([], ["hidden=1", "relations=1"]):
        run = build(tmp_path, *losses, model=bert(), teacher=bert(seed=1, **NO_DROPOUT | WIDE), max_steps=1)
        run.train()
        found.append(logged(run, "distill_loss", "label_loss"))
    assert found[0] == found[1]


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "student", "teacher", "kept", "expected"),
    [
        ("uniform", 2, 2, None, [(0, 0), (1, 1)]),
        ("uniform", 3, 6, None, [(0, 1), (1, 3), (2, 5)]),
        ("uniform", 4, 12, None, [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ("uniform", 3, 2, None, [(0, 0), (2, 1)]),
        ("uniform", 3, 6, 3, [(0, 0), (1, 2), (2, 5)]),
        ("uniform", 2, 6, [1, 4], [(0, 1), (1, 4)]),
        ("last", 3, 6, 3, [(2, 5)]),
        ("1:5, 0:2", 3, 6, None, [(0, 2), (1, 5)]),
        ("0:2,1:2", 3, 6, 3, [(0, 2), (1, 2)]),
    ],
)
def test_layers_are_paired(text: str, student: int, teacher: int, kept: Any, expected: Any) -> None:
    assert pair_layers(text, student, teacher, kept) == expected


def test_a_cut_student_learns_from_the_layers_it_has(tmp_path: Path) -> None:
    whole = {"model": bert(num_hidden_layers=4, **NO_DROPOUT)}
    cut = {"distill_student_layers": "0,3", "distill_teacher": "self"}
    run = build(tmp_path, "hidden=1", methods=(), options=cut, **whole, teacher=None, max_steps=1)
    assert pairs(run) == [(0, 0), (1, 3)]
    run.train()
    of_another_depth = build(
        tmp_path, "hidden=1", options={"distill_student_layers": "0,3"}, **whole, teacher=bert(num_hidden_layers=6)
    )
    assert pairs(of_another_depth) == [(0, 2), (1, 5)]
    cut_before = build(tmp_path, "hidden=1", model=student_from(bert(num_hidden_layers=4), [0, 3]))
    assert pairs(cut_before) == [(0, 0), (1, 1)]


def test_relations_compare_the_last_pair_only(tmp_path: Path) -> None:
    run = build(tmp_path, "relations=1", "hidden=1", layers="0:1")
    assert run._layerwise.couples == [(("relations", 0), ("relations", 1)), (("hidden", 0), ("hidden", 1))]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_only_what_a_loss_compares_is_kept_and_only_in_training(tmp_path: Path) -> None:
    run = build(tmp_path, "hidden=1", layers="1:0", max_steps=1)
    inputs = run._prepare_inputs(run.data_collator(rows(4)))
    with run._layers_attached():
        assert CAPTURED not in run.model(**inputs)
        hooked = {name for name, one in run.model.named_modules() if one._forward_hooks or one._forward_pre_hooks}
        assert hooked == {"", "bert.encoder.layer.1"}
        with run._captured("student"):
            assert len(run.model(**inputs)[CAPTURED]) == 1
        assert not run._layerwise.student._found
        run.evaluate()
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in run.model.modules())


def test_training_again_goes_on_with_the_same_projections(tmp_path: Path) -> None:
    run = build(tmp_path, "hidden=1", teacher=bert(seed=1, **NO_DROPOUT | WIDE), max_steps=2)
    run.train()
    before = {name: weight.clone() for name, weight in run._layerwise.projections.state_dict().items()}
    run.train()
    after = run._layerwise.projections.state_dict()
    assert before.keys() == after.keys() == {"0.weight", "1.weight"}
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_a_budget_does_not_count_projections(tmp_path: Path) -> None:
    run = build(tmp_path, "hidden=1", teacher=bert(seed=1, **NO_DROPOUT | WIDE))
    before = other_bytes(run.model, (), None)
    with run._layers_attached():
        assert other_bytes(run.model, (), None) == before


class Saving(TrainerCallback):
    """Saves the model when training ends, and its compressed form in the middle."""

    def on_step_end(self, args: Any, state: Any, *_: Any, model: Any, **__: Any) -> None:
        if state.global_step == 1:
            save_compressed(model, Path(args.output_dir) / "early", Recipe())

    def on_train_end(self, args: Any, *_: Any, model: Any, **__: Any) -> None:
        model.save_pretrained(Path(args.output_dir) / "late")


def test_callbacks_save_models_without_projections(tmp_path: Path) -> None:
    wide = bert(seed=1, **NO_DROPOUT | WIDE)
    build(tmp_path, "hidden=1", "attention=1", teacher=wide, max_steps=2, callbacks=[Saving()]).train()
    for name in ("early", "late"):
        assert not any(PROJECTIONS in weight for weight in load_file(tmp_path / name / "model.safetensors"))


@pytest.mark.parametrize("wide", [True, False])
def test_an_optimizer_that_lacks_the_projections_is_refused(wide: bool, tmp_path: Path) -> None:
    model, teacher = bert(**NO_DROPOUT), bert(seed=1, **NO_DROPOUT | (WIDE if wide else {}))
    options = {"distillation": DistillationArguments(distill_layer_loss=["hidden=1"])}
    given = {"optimizers": (torch.optim.AdamW(model.parameters()), None)}
    said = pytest.raises(ValueError, match="`optimizers` do not hold the projections")
    with said if wide else contextlib.nullcontext():
        make(tmp_path, (KD,), model=model, teacher=teacher, build=options | given, max_steps=1).train()


def test_each_new_model_gets_new_projections(tmp_path: Path) -> None:
    options = {"distillation": DistillationArguments(distill_layer_loss=["hidden=1"])}
    made = {"model_init": lambda: bert(**NO_DROPOUT)}
    run = make(tmp_path, (KD,), teacher=bert(seed=1, **NO_DROPOUT | WIDE), build=options | made, max_steps=2)
    losses = []
    for _ in range(2):
        run.train()
        losses.append(logged(run, "hidden_loss"))
    assert losses[0] == losses[1]


def test_projections_come_where_training_has_begun_before_us(tmp_path: Path) -> None:
    """The launcher makes a Trainer compress when its `train` is already running."""
    bert(seed=1, **NO_DROPOUT | WIDE, num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    options = DistillationArguments(
        distill_teacher=str(tmp_path / "teacher"), distill_layer_loss=["hidden=1"], distill_student_layers="0,3"
    )
    arguments = TrainingArguments(str(tmp_path / "run"), **SETTINGS | {"max_steps": 4})
    trainer = Trainer(None, arguments, train_dataset=rows(), model_init=lambda: bert(num_hidden_layers=4))
    run = compress(trainer, Recipe(options))
    Trainer.train(run)
    assert pairs(run) == [(0, 0), (1, 3)]
    first, *_, last = logged(run, "hidden_loss")
    assert last < first
    known = {id(weight) for group in run.optimizer.param_groups for weight in group["params"]}
    assert {id(weight) for weight in run._layerwise.projections.parameters()} <= known
    assert not hasattr(run.model, PROJECTIONS)


def test_checkpoints_have_the_projections_and_results_do_not(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    run = build(
        tmp_path,
        "hidden=1",
        methods=METHODS,
        teacher=bert(seed=1, **NO_DROPOUT | WIDE),
        save_strategy="steps",
        save_steps=6,
        eval_strategy="steps",
        eval_steps=6,
        load_best_model_at_end=True,
    )
    before = {target.name for target in quantizable(run.model)}
    with run._layers_attached():
        seen = [{target.name for target in choose(run.model)} for choose in (prunable, quantizable)]
    assert seen[1] == before and not any(PROJECTIONS in name for name in seen[0])
    run.train()
    stored = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert {name for name in stored if PROJECTIONS in name} == {f"{PROJECTIONS}.{one}.weight" for one in range(2)}
    assert not hasattr(run.model, PROJECTIONS)
    folder = save_compressed(run.model, tmp_path / "compressed", Recipe())
    assert not any(PROJECTIONS in name for name in load_file(folder / "model.safetensors"))
    assert BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-6") is not None


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *(
            ([text], f"must be NAME=WEIGHT, with one of hidden, .* and a weight above 0; got '{text}'")
            for text in ("hiden=1", "hidden", "hidden=", "hidden=0", "hidden=-1", "hidden=nan", "hidden=inf", "=1")
        ),
        (["hidden=1", "hidden=2"], "must name each loss once, got hidden=1 hidden=2"),
    ],
)
def test_layer_losses_that_make_no_sense_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=f"`--distill_layer_loss` {said}"):
        DistillationArguments(distill_teacher="self", distill_layer_loss=given)


@pytest.mark.parametrize("text", ["first", "", "0:1:2", "0-1", "1", "-1:0", "0:1,0:2"])
def test_pairs_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`--distill_layers` must"):
        DistillationArguments(distill_teacher="self", distill_layer_loss=["hidden=1"], distill_layers=text)


def test_pairs_without_a_layer_loss_warn() -> None:
    with pytest.warns(UserWarning, match="`--distill_layers last` has no effect without `--distill_layer_loss`"):
        DistillationArguments(distill_teacher="self", distill_layers="last")


def test_layer_losses_exclude_the_cache() -> None:
    with pytest.raises(ValueError, match="`--distill_cache` keeps the teacher's logits only"):
        DistillationArguments(distill_teacher="self", distill_layer_loss=["hidden=1"], distill_cache="auto")


def test_layer_losses_without_a_teacher_warn(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="`--distill_layer_loss hidden=1` has no effect without a teacher"):
        build(tmp_path, "hidden=1", methods=()).train()


# --- refused before training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("2:0", "names layer 2 of the student, whose layers are 0 to 1"),
        ("0:2", "names layer 2 of the teacher, whose layers are 0 to 1"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(layers: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`--distill_layers {layers}` {said}"):
        build(tmp_path, "hidden=1", layers=layers)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    student, teacher = (AutoModelForSeq2SeqLM.from_config(t5()) for _ in range(2))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has two stacks of layers"):
        build(tmp_path, "hidden=1", model=student, teacher=teacher)


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    model = bert()
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="BertForSequenceClassification has no lists of `config.num_hidden_layers`"):
        build(tmp_path, "hidden=1", model=model)


def test_layers_that_give_no_vectors_of_tokens_are_refused(tmp_path: Path) -> None:
    config = ConvNextConfig(num_channels=3, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    student, teacher = (AutoModelForImageClassification.from_config(config) for _ in range(2))
    with pytest.raises(ValueError, match="has stages of different widths .* in place of equal layers. Leave the opt"):
        build(tmp_path, "hidden=1", model=student, teacher=teacher)


@pytest.mark.parametrize("name", ["clip", "wav2vec2", "whisper"])
def test_towers_and_speech_encoders_learn_from_layers(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.config == name)
    student, teacher = build_media(case), build_media(case)
    losses = ("hidden=1", "relations=1")
    run = build(tmp_path, *losses, model=student, teacher=teacher, data=rows_for(student), learning_rate=1e-2)
    assert pairs(run)[:2] == [(0, 0), (1, 1)]
    run.train()
    first, *_, last = logged(run, "hidden_loss", "relations_loss")
    assert sum(last) < sum(first)


def test_other_numbers_of_tokens_are_refused(tmp_path: Path) -> None:
    student, teacher = (
        AutoModelForImageClassification.from_config(ViTConfig(**VIT, image_size=8, patch_size=size)) for size in (4, 2)
    )
    with pytest.raises(ValueError, match="the student has 5 and the teacher 17"):
        build(tmp_path, "hidden=1", model=student, teacher=teacher)


def test_layers_that_are_skipped_at_random_are_refused(tmp_path: Path) -> None:
    student, teacher = (AutoModelForAudioClassification.from_config(wav2vec2(num_labels=4)) for _ in range(2))
    with pytest.raises(ValueError, match=r"skips layers at random .*Set `model.config.layerdrop = 0`"):
        build(tmp_path, "hidden=1", model=student, teacher=teacher)


def test_projections_beside_an_adapter_are_refused(tmp_path: Path) -> None:
    student = adapted(bert(**NO_DROPOUT))
    assert isinstance(student, PeftModel)
    wide = {"model": student, "teacher": bert(seed=1, **NO_DROPOUT | WIDE)}
    with pytest.raises(ValueError, match="trained projections, .* 32 wide and the teacher's 48; .* Use `relations`"):
        build(tmp_path, "hidden=1", **wide)
    build(tmp_path, "relations=1", **wide, max_steps=1).train()


def test_a_loss_on_frozen_layers_is_refused(tmp_path: Path) -> None:
    model = bert(**NO_DROPOUT)
    model.bert.embeddings.requires_grad_(False)
    with pytest.raises(ValueError, match="`--distill_layer_loss embeddings` trains nothing"):
        build(tmp_path, "embeddings=1", model=model).train()


def test_a_student_of_another_family_learns_from_all_layers(tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
    student = AutoModelForSequenceClassification.from_config(DistilBertConfig(**sizes))
    run = build(tmp_path, *(f"{name}=1" for name in LAYER_LOSSES), model=student, teacher=bert(num_hidden_layers=4))
    assert pairs(run)[:2] == [(0, 1), (1, 3)]
    run.train()
    first, *_, last = logged(run, *TERMS)
    assert sum(last) < sum(first)


def test_a_mask_of_pairs_of_tokens_is_refused(tmp_path: Path) -> None:
    data = [row | {"attention_mask": row["attention_mask"].bool().expand(1, 8, 8)} for row in rows()]
    with pytest.raises(ValueError, match=r"`attention_mask` has the shape \(8, 1, 8, 8\). Give a mask of rows and"):
        build(tmp_path, "hidden=1", data=data).train()


class Rebuilding(Trainer):
    """Returns outputs that the model did not make."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        rebuilt = SequenceClassifierOutput(loss=outputs.loss, logits=outputs.logits)
        return (outputs.loss, rebuilt) if return_outputs else outputs.loss


class TaughtRebuilding(DistillationMixin, Rebuilding):
    """The same with a teacher."""


def test_outputs_that_are_not_the_models_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Let `compute_loss` return the model's own outputs"):
        build(tmp_path, "hidden=1", trainer_class=TaughtRebuilding).train()


def test_several_devices_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="does not work with `nn.DataParallel`, .* one process per device"):
        build(tmp_path, "hidden=1")


# --- beside other methods --------------------------------------------------------------------------------------------


def test_rows_that_only_the_teacher_labels_count_in_layer_losses(enlarging: Any, encoded: Any) -> None:
    runs = []
    for size, accumulation in ((16, 1), (4, 4)):
        run = enlarging(
            encoded.select(range(18)),
            options={"distill_layer_loss": ["hidden=1", "relations=1"]},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        runs.append(logged(run, "loss", "grad_norm", "hidden_loss", "relations_loss"))
    for four, one in zip(*runs, strict=True):
        assert four == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("scheme", ["int8", "int8-attention"])
def test_layer_losses_teach_a_student_that_rounds(scheme: str, tmp_path: Path) -> None:
    plan = Recipe(quantization=QuantizationArguments(quant_scheme=scheme, quant_begin=0.3))
    run = build(tmp_path, *(f"{name}=1" for name in LAYER_LOSSES), plan=plan)
    before = run.model.config._attn_implementation
    run.train()
    assert run.model.config._attn_implementation == before
    assert all(0 < value < 10 for line in logged(run, *TERMS) for value in line)
    folder = save_compressed(run.model, tmp_path / "compressed", plan)
    reloaded = BertForSequenceClassification.from_pretrained(folder, attn_implementation=before)
    assert logit_difference(run, reloaded, find_head(reloaded))[0] == 0
