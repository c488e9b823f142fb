import copy
import math
import warnings
from itertools import product

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_compress.distill import (
    DistillationArguments,
    DistillationMixin,
    DistillationTrainer,
    Seq2SeqDistillationTrainer,
)
from hf_compress.distill.losses import LOSSES, binary_kl, ce, kl

VOCABULARY, LENGTH, ROWS = 100, 6, 32
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
} | NO_DROPOUT
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "dropout": 0.0,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
CONFIGS = {
    "Bert": (BertConfig, BERT),
    "Roberta": (RobertaConfig, BERT),
    "DistilBert": (DistilBertConfig, DISTILBERT),
    "GPT2": (GPT2Config, GPT2),
    "T5": (T5Config, T5),
    "Bart": (BartConfig, BART),
}


def build(model_class: type, seed: int = 0, **changes):
    """A tiny model; the weights are large enough for its outputs to differ from row to row."""
    name = next(name for name in CONFIGS if model_class.__name__.startswith(name))
    config_class, settings = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**settings | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
    return model


def rows(model_class: type = BertForSequenceClassification, **settings) -> list[dict]:
    """Examples for a model of the class; the number of labels that count is uneven where labels are per token."""
    draw = torch.Generator().manual_seed(1)
    examples = []
    for index in range(ROWS):
        ids = torch.randint(5, VOCABULARY, (LENGTH,), generator=draw)
        example = {"input_ids": ids, "attention_mask": torch.ones(LENGTH, dtype=torch.long)}
        kept = torch.arange(LENGTH) < 1 + index % LENGTH
        name = model_class.__name__
        if name.endswith("SequenceClassification"):
            example["labels"] = torch.tensor(index % settings.get("num_labels", 2))
            if settings.get("num_labels") == 1:
                example["labels"] = torch.randn((), generator=draw)
            if settings.get("problem_type") == "multi_label_classification":
                example["labels"] = torch.rand(settings["num_labels"], generator=draw).round()
        elif name.endswith("TokenClassification"):
            example["labels"] = torch.where(kept, ids % 2, -100)
        elif name.endswith("QuestionAnswering"):
            example |= {"start_positions": torch.tensor(index % 3), "end_positions": torch.tensor(3 + index % 3)}
        elif name.endswith("MultipleChoice"):
            choices = torch.stack([ids, ids.flip(0)])
            example = {
                "input_ids": choices,
                "attention_mask": torch.ones_like(choices),
                "labels": torch.tensor(index % 2),
            }
        else:
            example["labels"] = torch.where(kept, ids, -100)
        examples.append(example)
    return examples


class Norms(TrainerCallback):
    """Keeps the gradient of every step, before it is used."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])


def make(trainer_class, model, folder, data=None, *, batch=8, accumulation=1, steps=3, callbacks=None, **more):
    arguments_class = Seq2SeqTrainingArguments if issubclass(trainer_class, Seq2SeqTrainer) else TrainingArguments
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    } | more.pop("arguments", {})
    return trainer_class(
        model,
        arguments_class(**settings),
        train_dataset=rows() if data is None else data,
        callbacks=callbacks,
        **more,
    )


def logged(trainer, name):
    return [line[name] for line in trainer.state.log_history if name in line]


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture
def student():
    return build(BertForSequenceClassification)


@pytest.fixture
def teacher():
    return build(BertForSequenceClassification, seed=1, hidden_size=48)


# -- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_loss_is_the_mix_of_both_terms_and_both_are_logged(loss, student, teacher, tmp_path):
    with torch.no_grad():
        batch = {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}
        plain, wise = student(**batch), teacher(**batch)
        expected = LOSSES[loss].function(plain.logits, wise.logits, 3.0 if loss != "mse" else 2.0).mean()
    settings = DistillationArguments(
        distill_loss=loss, distill_alpha=0.3, **({} if loss == "mse" else {"distill_temperature": 3.0})
    )
    trainer = make(DistillationTrainer, student, tmp_path, batch=ROWS, teacher=teacher, distillation=settings)
    trainer.train()
    assert logged(trainer, "distill_loss")[0] == pytest.approx(expected.item(), rel=1e-5)
    assert logged(trainer, "label_loss")[0] == pytest.approx(plain.loss.item(), rel=1e-5)
    terms = (logged(trainer, name) for name in ("loss", "distill_loss", "label_loss"))
    for total, distilled, label in zip(*terms, strict=True):
        assert total == pytest.approx(0.3 * distilled + 0.7 * label, rel=1e-5)


@pytest.mark.parametrize(("accumulation", "logging_steps"), [(1, 2), (2, 1), (2, 3)])
def test_logged_terms_cover_the_same_steps_as_the_loss(accumulation, logging_steps, student, teacher, tmp_path):
    trainer = make(
        DistillationTrainer,
        student,
        tmp_path,
        batch=4,
        accumulation=accumulation,
        steps=6,
        teacher=teacher,
        arguments={"logging_steps": logging_steps},
    )
    for _ in range(2):  # a second training starts its sums at zero
        trainer.train()
        terms = list(zip(*(logged(trainer, name) for name in ("loss", "distill_loss", "label_loss")), strict=True))
        assert len(terms) == 6 // logging_steps
        for total, distilled, label in terms:
            assert total == pytest.approx(0.9 * distilled + 0.1 * label, rel=1e-5)


def test_a_student_of_a_good_teacher_comes_to_agree_with_it(student, teacher, tmp_path):
    trainer = make(
        DistillationTrainer,
        student,
        tmp_path,
        batch=ROWS,
        steps=30,
        teacher=teacher,
        distillation=DistillationArguments(distill_alpha=1.0),
        arguments={"learning_rate": 3e-3},
    )
    trainer.train()
    assert logged(trainer, "distill_loss")[-1] < 0.1 * logged(trainer, "distill_loss")[0]


def test_regression_compares_outputs_whatever_the_loss_is_called(tmp_path):
    changes = {"num_labels": 1}
    student, teacher = (build(BertForSequenceClassification, seed, **changes) for seed in (0, 1))
    data = rows(num_labels=1)
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    with torch.no_grad():
        expected = (student(**batch).logits - teacher(**batch).logits).pow(2).mean().item()
    for loss in LOSSES:
        trainer = make(
            DistillationTrainer,
            copy.deepcopy(student),
            tmp_path,
            data,
            batch=ROWS,
            steps=1,
            teacher=teacher,
            distillation=DistillationArguments(distill_loss=loss),
        )
        trainer.train()
        assert logged(trainer, "distill_loss") == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
def test_several_labels_are_compared_one_by_one(problem_type, tmp_path):
    student, teacher = (
        build(BertForSequenceClassification, seed, num_labels=3, problem_type=problem_type) for seed in (0, 1)
    )
    data = rows(num_labels=3, problem_type="multi_label_classification")
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    with torch.no_grad():
        expected = binary_kl(student.eval()(**batch).logits, teacher.eval()(**batch).logits, 2.0).mean().item()
    student.config.problem_type = problem_type
    trainer = make(DistillationTrainer, student, tmp_path, data, batch=ROWS, steps=1, teacher=teacher)
    trainer.train()
    assert logged(trainer, "distill_loss") == [pytest.approx(expected, rel=1e-5)]


def test_label_smoothing_applies_to_the_label_term_only(student, teacher, tmp_path):
    arguments = {"label_smoothing_factor": 0.2}
    plain = make(Trainer, copy.deepcopy(student), tmp_path, arguments=arguments)
    mixed = make(DistillationTrainer, copy.deepcopy(student), tmp_path, arguments=arguments, teacher=teacher)
    hard = make(DistillationTrainer, copy.deepcopy(student), tmp_path, teacher=teacher)
    for trainer in (plain, mixed, hard):
        trainer.train()
    assert logged(mixed, "label_loss")[0] == pytest.approx(logged(plain, "loss")[0], rel=1e-6)
    assert logged(mixed, "distill_loss")[0] == pytest.approx(logged(hard, "distill_loss")[0], rel=1e-6)


# -- what it leaves alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize(
    ("model_class", "how"),
    [
        *product([BertForSequenceClassification, BertForMaskedLM], ["no teacher", "alpha 0", "loaded", "self"]),
        (GPT2LMHeadModel, "no teacher"),
    ],
)
def test_without_weight_on_a_teacher_training_is_plain(how, model_class, with_dropout, tmp_path):
    changes = dict.fromkeys(NO_DROPOUT if model_class is not GPT2LMHeadModel else ["resid_pdrop"], 0.1)
    student = build(model_class, **(changes if with_dropout else {}))
    more = {}
    if how != "no teacher":
        more["distillation"] = DistillationArguments(distill_alpha=0.0)
    if how == "alpha 0":
        more["teacher"] = build(model_class, seed=1)
    if how == "loaded":
        build(model_class, seed=1).save_pretrained(tmp_path / "teacher")
        more["distillation"].distill_teacher = str(tmp_path / "teacher")
    if how == "self":
        more["distillation"].distill_teacher = "self"
    plain, ours = (
        make(
            trainer_class,
            copy.deepcopy(student),
            tmp_path,
            rows(model_class),
            eval_dataset=rows(model_class),
            **kwargs,
        )
        for trainer_class, kwargs in ((Trainer, {}), (DistillationTrainer, more))
    )
    losses = []
    for trainer in (plain, ours):
        set_seed(0)
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
    assert not equal(plain.model, student)
    assert equal(plain.model, ours.model)
    assert logged(plain, "grad_norm") == logged(ours, "grad_norm")
    assert losses[0] == losses[1]
    if how == "no teacher":
        assert logged(plain, "loss") == logged(ours, "loss")
        assert not logged(ours, "distill_loss")


def test_evaluation_never_asks_the_teacher(student, teacher, tmp_path):
    plain = make(Trainer, student, tmp_path, eval_dataset=rows()).evaluate()
    trainer = make(DistillationTrainer, student, tmp_path, eval_dataset=rows(), teacher=teacher)

    def forbidden(*args):
        raise AssertionError("the teacher was called")

    trainer.teacher.register_forward_pre_hook(forbidden)
    assert trainer.evaluate()["eval_loss"] == plain["eval_loss"]
    assert trainer.predict(rows()).metrics["test_loss"] == plain["eval_loss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teacher_is_frozen_whole_and_absent_from_checkpoints(dtype, student, teacher, tmp_path):
    teacher.to(dtype).train()
    before = copy.deepcopy(teacher)
    trainer = make(
        DistillationTrainer, student, tmp_path, teacher=teacher, arguments={"save_strategy": "steps", "save_steps": 3}
    )
    trainer.train()
    assert trainer.teacher is teacher
    assert not teacher.training
    assert equal(teacher, before)
    assert all(p.dtype == dtype and not p.requires_grad and p.grad is None for p in teacher.parameters())
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "checkpoint-3" / "model.safetensors")) == set(student.state_dict())
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in teacher.parameters()}


def test_self_is_a_copy_from_before_callbacks_change_the_model(student, tmp_path):
    class Swap(TrainerCallback):
        def on_init_end(self, args, state, control, model, **kwargs):
            model.bert.encoder.layer[0].intermediate.dense = nn.Identity()
            model.bert.encoder.layer[0].output.dense = nn.Identity()
            model.bert.encoder.layer[0].output.LayerNorm = nn.Identity()
            model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.Identity()

    before = copy.deepcopy(student)
    settings = DistillationArguments(distill_teacher="self")
    trainer = make(DistillationTrainer, student, tmp_path, callbacks=[Swap()], distillation=settings)
    trainer.train()
    assert isinstance(trainer.model.bert.encoder.layer[0].output.dense, nn.Identity)
    assert equal(trainer.teacher, before)
    assert logged(trainer, "distill_loss")[0] > 0


def test_the_model_may_be_given_by_name(student, tmp_path):
    settings = DistillationArguments(distill_teacher="self")
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    trainer = DistillationTrainer(model=student, args=arguments, train_dataset=rows(), distillation=settings)
    assert equal(trainer.teacher, student)


def test_a_teacher_is_loaded_for_a_model_that_is_built_later(teacher, tmp_path):
    teacher.to(torch.float16).save_pretrained(tmp_path / "teacher")
    trainer = make(
        DistillationTrainer,
        None,
        tmp_path,
        model_init=lambda: build(BertForSequenceClassification),
        distillation=DistillationArguments(distill_teacher=str(tmp_path / "teacher")),
    )
    trainer.train()
    assert trainer.teacher.dtype == torch.float16
    assert equal(trainer.teacher, teacher)
    assert logged(trainer, "distill_loss")[0] > 0


def test_a_teacher_may_take_fewer_inputs_than_the_student(student, tmp_path):
    data = [row | {"token_type_ids": torch.zeros(LENGTH, dtype=torch.long)} for row in rows()]
    trainer = make(DistillationTrainer, student, tmp_path, data, teacher=build(DistilBertForSequenceClassification))
    trainer.train()
    assert logged(trainer, "distill_loss")[0] > 0


def test_a_teacher_that_reads_pairs_differently_is_mentioned(teacher, tmp_path, caplog):
    data = Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows()])
    student = build(DistilBertForSequenceClassification)
    make(DistillationTrainer, student, tmp_path, data, teacher=teacher)
    assert "token_type_ids" not in caplog.text, "nothing is lost"
    pairs = data.add_column("token_type_ids", [[0] * LENGTH] * len(data))
    make(DistillationTrainer, student, tmp_path, pairs, teacher=teacher)
    assert "The teacher (BertForSequenceClassification) reads `token_type_ids`" in caplog.text


def test_the_mixin_goes_before_any_trainer(student, teacher, tmp_path):
    class Louder(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return (7 * loss, outputs) if return_outputs else 7 * loss

    class Mixed(DistillationMixin, Louder):
        pass

    losses = []
    for trainer_class in (DistillationTrainer, Mixed):
        trainer = make(trainer_class, copy.deepcopy(student), tmp_path, steps=1, teacher=teacher)
        trainer.train()
        losses.append(logged(trainer, "label_loss")[0])
    assert losses[1] == pytest.approx(7 * losses[0], rel=1e-6)


def test_a_model_with_an_unknown_head_trains_without_a_teacher(tmp_path):
    class Regressor(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(LENGTH, 1)

        def forward(self, input_ids, labels=None):
            predicted = self.layer(input_ids.float() / VOCABULARY).squeeze(-1)
            return {"loss": (predicted - labels.float()).pow(2).mean(), "logits": predicted}

    set_seed(0)
    model = Regressor()
    trainers = [make(kind, copy.deepcopy(model), tmp_path, accumulation=2) for kind in (Trainer, DistillationTrainer)]
    for trainer in trainers:
        trainer.train()
    assert equal(trainers[0].model, trainers[1].model)


# -- accumulation --------------------------------------------------------------------------------------------------

CLASSIFIERS = [BertForSequenceClassification, RobertaForSequenceClassification, DistilBertForSequenceClassification]
OTHERS = [
    BertForTokenClassification,
    BertForQuestionAnswering,
    BertForMultipleChoice,
    BertForMaskedLM,
    RobertaForMaskedLM,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
    BartForConditionalGeneration,
]


def accumulated(model, data, folder, accumulation, trainer_class=DistillationTrainer, **more):
    """Losses, gradient norms and the first gradients of steps over 16 rows; the last of an epoch has fewer."""
    norms = Norms()
    trainer = make(
        trainer_class,
        copy.deepcopy(model),
        folder,
        data[:27],
        batch=16 // accumulation,
        accumulation=accumulation,
        callbacks=[norms],
        arguments={"max_grad_norm": 0.0, "learning_rate": 1e-3},
        **more,
    )
    trainer.train()
    sizes = [torch.stack([g.norm() for g in gradients]).norm().item() for gradients in norms.gradients]
    return logged(trainer, "loss"), sizes, norms.gradients[0]


@pytest.mark.parametrize("taught", [False, True], ids=["plain", "taught"])
@pytest.mark.parametrize("model_class", CLASSIFIERS + OTHERS)
def test_four_batches_of_four_are_one_of_sixteen(model_class, taught, tmp_path):
    model, data = build(model_class), rows(model_class)
    more = {"teacher": build(model_class, seed=1)} if taught else {}
    once, fourfold = (accumulated(model, data, tmp_path, accumulation, **more) for accumulation in (1, 4))
    assert fourfold[0] == pytest.approx(once[0], rel=1e-5)
    assert fourfold[1] == pytest.approx(once[1], rel=1e-5)
    scale = max(gradient.abs().max() for gradient in once[2])
    for one, four in zip(once[2], fourfold[2], strict=True):
        torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}]
)
def test_four_by_four_is_sixteen_for_other_problems(settings, tmp_path):
    model, teacher = (build(BertForSequenceClassification, seed, **settings) for seed in (0, 1))
    once, fourfold = (accumulated(model, rows(**settings), tmp_path, n, teacher=teacher) for n in (1, 4))
    assert fourfold[0] == pytest.approx(once[0], rel=1e-5)
    assert fourfold[1] == pytest.approx(once[1], rel=1e-5)


def test_accumulation_with_label_smoothing_is_one_large_batch(teacher, student, tmp_path):
    results = []
    for accumulation in (1, 4):
        trainer = make(
            DistillationTrainer,
            copy.deepcopy(student),
            tmp_path,
            batch=16 // accumulation,
            accumulation=accumulation,
            arguments={"label_smoothing_factor": 0.1},
            teacher=teacher,
        )
        trainer.train()
        results.append(logged(trainer, "loss") + logged(trainer, "grad_norm"))
    assert results[1] == pytest.approx(results[0], rel=1e-5)


@pytest.mark.parametrize("taught", [False, True], ids=["plain", "taught"])
def test_answers_outside_of_the_text_do_not_count(taught, tmp_path):
    model, data = build(BertForQuestionAnswering), rows(BertForQuestionAnswering)[:16]
    for row in data[2:9]:
        row["end_positions"] = torch.tensor(LENGTH)
    more = {"teacher": build(BertForQuestionAnswering, seed=1)} if taught else {}
    if not taught:  # One batch of sixteen is the plain Trainer's, which counts the ends one by one.
        for row in data[2:9]:
            row["start_positions"] = torch.tensor(LENGTH)
    once, fourfold = (accumulated(model, data, tmp_path, accumulation, steps=1, **more) for accumulation in (1, 4))
    assert fourfold[0] == pytest.approx(once[0], rel=1e-5)
    assert fourfold[1] == pytest.approx(once[1], rel=1e-5)


@pytest.mark.parametrize(
    "model_class", [BertForTokenClassification, BertForMaskedLM, GPT2LMHeadModel, T5ForConditionalGeneration]
)
@pytest.mark.parametrize("taught", [False, True], ids=["plain", "taught"])
def test_a_micro_batch_without_labels_adds_nothing(model_class, taught, tmp_path):
    model, data = build(model_class), rows(model_class)[:16]
    for row in data[1:]:
        row["labels"] = torch.full_like(row["labels"], -100)
    data[0]["labels"] = data[0]["input_ids"] % 2
    more = {"teacher": build(model_class, seed=1)} if taught else {}
    once, fourfold = (accumulated(model, data, tmp_path, accumulation, steps=1, **more) for accumulation in (1, 4))
    assert math.isfinite(once[0][0])
    assert fourfold[0] == pytest.approx(once[0], rel=1e-5)
    assert fourfold[1] == pytest.approx(once[1], rel=1e-5)


def test_a_causal_model_without_a_teacher_is_left_alone(tmp_path):
    model, data = build(GPT2LMHeadModel), rows(GPT2LMHeadModel)
    ours, theirs = (accumulated(model, data, tmp_path, 4, trainer) for trainer in (DistillationTrainer, Trainer))
    assert ours[:2] == theirs[:2]


def test_a_loss_function_of_the_users_keeps_its_convention(student, tmp_path):
    def of_the_users(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    results = [
        accumulated(student, rows(), tmp_path, 4, trainer_class, compute_loss_func=of_the_users)
        for trainer_class in (Trainer, DistillationTrainer)
    ]
    assert results[0][:2] == results[1][:2]


def test_padding_of_a_token_classifier_does_not_count(tmp_path):
    model_class = BertForTokenClassification
    model, teacher = build(model_class), build(model_class, seed=1)
    data = [row | {"labels": row["input_ids"] % 2} for row in rows(model_class)]
    masked = [copy.deepcopy(row) for row in data]
    for row in [*data, *masked]:
        row["attention_mask"] = (torch.arange(LENGTH) < 4).long()
    for row in masked:
        row["labels"][4:] = -100
    first, second = (accumulated(model, rows_, tmp_path, 1, teacher=teacher) for rows_ in (data, masked))
    assert first[0] == second[0]


# -- classes -------------------------------------------------------------------------------------------------------


def test_a_teacher_with_reordered_labels_teaches_the_same(tmp_path):
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    student = build(BertForSequenceClassification, num_labels=3, id2label=names)
    same = build(BertForSequenceClassification, seed=1, num_labels=3, id2label=names)
    other = copy.deepcopy(same)
    order = [2, 0, 1]
    other.config.id2label = {new: names[old].upper() for new, old in enumerate(order)}
    with torch.no_grad():
        other.classifier.weight.copy_(same.classifier.weight[order])
        other.classifier.bias.copy_(same.classifier.bias[order])
    results = []
    for teacher in (same, other):
        trainer = make(DistillationTrainer, copy.deepcopy(student), tmp_path, rows(num_labels=3), teacher=teacher)
        trainer.train()
        results.append(trainer.model)
    assert equal(*results)


def test_labels_without_names_are_taken_in_order_and_mentioned(student, teacher, tmp_path, caplog):
    teacher.config.id2label = {0: "negative", 1: "positive"}
    make(DistillationTrainer, student, tmp_path, teacher=teacher)
    assert "['negative', 'positive']" in caplog.text


def test_names_are_not_asked_of_a_regression(tmp_path, caplog):
    student = build(BertForSequenceClassification, num_labels=1)
    teacher = build(BertForSequenceClassification, num_labels=1, id2label={0: "similarity"})
    make(DistillationTrainer, student, tmp_path, rows(num_labels=1), teacher=teacher)
    assert "similarity" not in caplog.text


# -- refusals ------------------------------------------------------------------------------------------------------


def named(model, *names):
    model.config.id2label = dict(enumerate(names))
    return model


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            lambda: build(BertForSequenceClassification),
            lambda: build(BertForSequenceClassification, num_labels=3),
            "num_labels=3",
        ),
        (
            lambda: build(BertForSequenceClassification),
            lambda: build(BertForTokenClassification),
            "token classification",
        ),
        (
            lambda: build(BertForSequenceClassification),
            lambda: build(BertForSequenceClassification, vocab_size=101),
            "rows for 101 tokens, .* for 100.*resize_token_embeddings\\(100\\)` on the teacher",
        ),
        (lambda: build(BertForSequenceClassification), lambda: build(BertModel), "no known head"),
        (lambda: build(BertModel), lambda: build(BertForSequenceClassification), "cannot be used as is|no known head"),
        (
            lambda: build(BertForSequenceClassification, problem_type="single_label_classification"),
            lambda: build(BertForSequenceClassification, problem_type="multi_label_classification"),
            "multi_label_classification",
        ),
        (
            lambda: named(build(BertForSequenceClassification), "no", "yes"),
            lambda: named(build(BertForSequenceClassification), "bad", "good"),
            "'bad', 'good'",
        ),
    ],
    ids=["number", "head", "vocabulary", "headless teacher", "headless student", "problem", "names"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(student, teacher, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(DistillationTrainer, student(), tmp_path, teacher=teacher())


def test_a_teacher_that_is_the_student_is_refused(student, tmp_path):
    for teacher in (student, copy.copy(student)):
        with pytest.raises(ValueError, match="copy.deepcopy"):
            make(DistillationTrainer, student, tmp_path, teacher=teacher)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_two_teachers_are_refused(student, teacher, tmp_path):
    with pytest.raises(ValueError, match="two teachers"):
        make(
            DistillationTrainer,
            student,
            tmp_path,
            teacher=teacher,
            distillation=DistillationArguments(distill_teacher="self"),
        )


def test_self_needs_a_model(tmp_path):
    settings = DistillationArguments(distill_teacher="self")
    with pytest.raises(ValueError, match="model_init"):
        make(
            DistillationTrainer,
            None,
            tmp_path,
            model_init=lambda: build(BertForSequenceClassification),
            distillation=settings,
        )


def test_a_loss_function_of_the_users_excludes_a_teacher(student, teacher, tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func"):
        make(DistillationTrainer, student, tmp_path, teacher=teacher, compute_loss_func=lambda *args, **kwargs: None)


def test_a_path_without_a_model_is_refused(student, tmp_path):
    settings = DistillationArguments(distill_teacher=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="--distill_teacher .*nowhere"):
        make(DistillationTrainer, student, tmp_path, distillation=settings)


def test_a_teacher_whose_head_was_never_trained_is_refused(student, tmp_path):
    build(BertModel).save_pretrained(tmp_path / "body")
    settings = DistillationArguments(distill_teacher=str(tmp_path / "body"))
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        make(DistillationTrainer, student, tmp_path, distillation=settings)


def test_another_tokenizer_beside_the_teacher_is_refused(student, teacher, tiny_tokenizer, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    settings = DistillationArguments(distill_teacher=str(tmp_path / "teacher"))
    make(DistillationTrainer, student, tmp_path, distillation=settings, processing_class=tiny_tokenizer)
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    make(DistillationTrainer, student, tmp_path, distillation=settings, processing_class=tiny_tokenizer)
    ours = copy.deepcopy(tiny_tokenizer)
    ours.add_tokens(["unheard"])
    with pytest.raises(ValueError, match="'unheard'"):
        make(DistillationTrainer, student, tmp_path, distillation=settings, processing_class=ours)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_folder_as_teacher_is_base_and_adapter(student, teacher, tmp_path):
    from peft import LoraConfig, get_peft_model

    teacher.save_pretrained(tmp_path / "base")
    teacher = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(teacher, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    batch = {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}
    with torch.no_grad():
        expected = kl(student(**batch).logits, adapted(**batch).logits, 2.0).mean().item()
    settings = DistillationArguments(distill_teacher=str(tmp_path / "adapter"))
    trainer = make(DistillationTrainer, student, tmp_path, batch=ROWS, steps=1, distillation=settings)
    trainer.train()
    assert logged(trainer, "distill_loss") == [pytest.approx(expected, rel=1e-5)]


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("distill_teacher", " "),
        ("distill_loss", "l1"),
        ("distill_temperature", 0.0),
        ("distill_temperature", -1.0),
        ("distill_temperature", float("inf")),
        ("distill_temperature", float("nan")),
        ("distill_alpha", -0.1),
        ("distill_alpha", 1.1),
        ("distill_alpha", float("nan")),
    ],
)
def test_an_option_outside_its_range_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"`--{option}` must"):
        DistillationArguments(**{option: value})


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_the_range_are_legal(alpha):
    assert DistillationArguments(distill_alpha=alpha).distill_alpha == alpha


def test_a_temperature_that_has_no_effect_warns():
    with pytest.warns(UserWarning, match="--distill_temperature 3.0.*no effect"):
        DistillationArguments(distill_loss="mse", distill_temperature=3.0)


def test_options_without_a_teacher_warn_and_with_one_do_not(student, teacher, tmp_path):
    settings = DistillationArguments(distill_alpha=0.5)
    with pytest.warns(UserWarning, match="--distill_alpha 0.5.*without a teacher"):
        make(DistillationTrainer, student, tmp_path, distillation=settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make(DistillationTrainer, student, tmp_path, distillation=settings, teacher=teacher)
        make(DistillationTrainer, student, tmp_path)


def test_the_command_line_reads_the_options():
    (settings,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        ["--distill_teacher", "self", "--distill_loss", "ce", "--distill_temperature", "4", "--distill_alpha", "0.5"]
    )
    assert settings == DistillationArguments("self", "ce", 4.0, 0.5)
    assert settings.enabled
    assert not DistillationArguments().enabled


# -- sequence to sequence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [T5ForConditionalGeneration, BartForConditionalGeneration])
def test_a_seq2seq_teacher_reads_what_the_student_reads(model_class, tmp_path):
    student, teacher = build(model_class), build(model_class, seed=1)
    data = rows(model_class)
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    counted = batch["labels"] != -100
    with torch.no_grad():
        ours, theirs = (model.eval()(**batch).logits[counted] for model in (student, teacher))
        expected = ce(ours, theirs, 2.0).mean().item()
    trainer = make(
        Seq2SeqDistillationTrainer,
        student,
        tmp_path,
        data,
        batch=ROWS,
        teacher=teacher,
        distillation=DistillationArguments(distill_loss="ce"),
        eval_dataset=data,
        arguments={"predict_with_generate": True, "generation_max_length": 4},
    )
    trainer.train()
    assert isinstance(trainer, Seq2SeqTrainer)
    assert logged(trainer, "distill_loss")[0] == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
