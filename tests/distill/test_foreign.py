"""Other classes' `compute_loss`: on top of the mixin, below it, and with other return values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from hf_compress.distill import DistillationArguments, DistillationMixin, DistillationTrainer
from hf_compress.distill.losses import kl
from tests.invariants.harness import KD, logged, make, rows
from tests.tiny import NO_DROPOUT, VOCABULARY, bert


class Weighted(Trainer):
    """A user's Trainer with class weights."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        weight = torch.tensor([1.0, 20.0], dtype=outputs.logits.dtype)
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"], weight=weight)
        return (loss, outputs) if return_outputs else loss


class OnTop(DistillationTrainer):
    compute_loss = Weighted.compute_loss


class Before(Weighted, DistillationTrainer):
    pass


class Behind(DistillationMixin, Weighted):
    pass


def run(trainer_class: Any, folder: Path, **settings: Any) -> Any:
    return make(
        folder,
        (KD,),
        model=bert(**NO_DROPOUT),
        teacher=bert(seed=1, **NO_DROPOUT),
        trainer_class=trainer_class,
        **{"max_steps": 2, **settings},
    )


@pytest.mark.parametrize(("trainer_class", "name"), [(OnTop, "OnTop"), (Before, "Weighted")])
def test_a_loss_on_top_that_never_asks_is_refused(trainer_class: Any, name: str, tmp_path: Path) -> None:
    said = rf"never asked, because `compute_loss` of {name} .*class Mine\(DistillationMixin, YourTrainer\)"
    trainer = run(trainer_class, tmp_path)
    with pytest.raises(ValueError, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loss_behind_the_mixin_is_distilled_too(tmp_path: Path) -> None:
    trainer = run(Behind, tmp_path, learning_rate=0.0, max_steps=8)
    trainer.train()
    whole = {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}
    models = bert(**NO_DROPOUT), bert(seed=1, **NO_DROPOUT)
    with torch.no_grad():
        ours, theirs = (model(**whole).logits for model in models)
    distances = [line[0] for line in logged(trainer, "distill_loss")]
    assert sum(distances) / 8 == pytest.approx(kl(ours, theirs, 2.0).mean().item(), rel=1e-4)


def test_the_refused_loss_function_names_the_order_that_works(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class Mine\(DistillationMixin, YourTrainer\)"):
        make(tmp_path, (KD,), build={"compute_loss_func": lambda *_, **__: torch.zeros(())})


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda loss, outputs: (loss, {"outputs": outputs}), r"\(a Tensor, a dict of 'outputs'\)"),
        (lambda loss, outputs: loss, "it returned a Tensor"),
        (lambda loss, outputs: (loss, outputs.logits), r"\(a Tensor, a Tensor\)"),
        (lambda loss, outputs: (loss, None), r"\(a Tensor, a NoneType\)"),
    ],
    ids=["wrapped", "bare", "logits", "none"],
)
def test_other_returns_of_a_loss_are_refused(returned: Any, said: str, tmp_path: Path) -> None:
    class Odd(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(**inputs)
            return returned(outputs.loss, outputs)

    class Taught(DistillationMixin, Odd):
        pass

    with pytest.raises(ValueError, match=rf"`compute_loss` of Odd must return `\(loss, outputs\)`.*{said}"):
        run(Taught, tmp_path).train()


def test_a_bare_loss_accumulates_without_a_teacher(tmp_path: Path) -> None:
    class Bare(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return model(**inputs).loss

    losses = []
    for base in (Bare, Plain):
        mixed = type("Mixed", (DistillationMixin, base), {})
        trainer = make(
            tmp_path, model=bert(**NO_DROPOUT), trainer_class=mixed, max_steps=2, gradient_accumulation_steps=2
        )
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_a_batch_without_labels_has_a_finite_loss(tmp_path: Path) -> None:
    data = rows(24)
    for row in data[8:]:
        row["labels"] = torch.tensor(-100)
    trainer = make(
        tmp_path,
        (KD,),
        model=bert(**NO_DROPOUT),
        data=data,
        build={"distillation": DistillationArguments()},
        max_steps=12,
        per_device_train_batch_size=4,
        logging_steps=6,
    )
    trainer.train()
    found = [value for line in logged(trainer, "loss", "label_loss", "distill_loss", "grad_norm") for value in line]
    assert torch.tensor(found).isfinite().all() and min(found[:2]) > 0


def test_an_unknown_model_that_does_not_shift_is_refused(tmp_path: Path) -> None:
    class Unshifted(GPT2LMHeadModel):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **more: Any) -> Any:
            outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            outputs["loss"] = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
            return outputs

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    data = [row | {"labels": row["input_ids"]} for row in rows()]
    plain = make(tmp_path, (KD,), model=GPT2LMHeadModel(config), teacher=GPT2LMHeadModel(config), data=data)
    plain.train()
    odd = make(tmp_path, (KD,), model=Unshifted(config), teacher=GPT2LMHeadModel(config), data=data)
    with pytest.raises(ValueError, match="Unshifted compares its logits with the labels as they are"):
        odd.train()
    assert odd.state.global_step == 0


class Summed(Weighted):
    """Class weights over the number of rows: a mean over rows."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        weight = torch.tensor([1.0, 20.0], dtype=outputs.logits.dtype)
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"], weight=weight, reduction="sum")
        loss = loss / len(outputs.logits)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize(("size", "accumulation"), [(4, 4), (1, 16)])
@pytest.mark.parametrize("methods", [(KD,), ()], ids=["taught", "alone"])
def test_class_weights_are_refused_under_accumulation(
    size: int, accumulation: int, methods: Any, tmp_path: Path
) -> None:
    trainer = make(
        tmp_path,
        methods,
        trainer_class=Behind,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    with pytest.raises(
        ValueError, match="`compute_loss` of Weighted is not a mean over the rows or tokens with labels"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_weighted_mean_over_rows_accumulates(tmp_path: Path) -> None:
    class Taught(DistillationMixin, Summed):
        pass

    losses = []
    for size in (16, 4):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        trainer = run(Taught, tmp_path, **settings)
        trainer.train()
        losses += logged(trainer, "loss", "label_loss", "grad_norm")
    assert losses[0] == pytest.approx(losses[2], rel=1e-4) and losses[1] == pytest.approx(losses[3], rel=1e-4)
