"""Layers of models of sentence-transformers learn from those of a teacher, on the texts of the script's own loss."""

from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel

from hf_compress import Recipe, compress
from hf_compress.distill import DistillationArguments
from hf_compress.distill.layer_losses import LAYER_LOSSES
from hf_compress.models.targets import transformer
from tests.invariants.harness import logged

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses as pair_losses  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402

RANKING = losses.MultipleNegativesRankingLoss
LOSSES = {
    "plain": RANKING,
    "matryoshka": lambda model: losses.MatryoshkaLoss(model, RANKING(model), [32, 16]),
    "cached": lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
}


def taught(run: Any, **options: Any) -> Any:
    return compress(run, Recipe(DistillationArguments(**options)))


def embedder(bench: Any, name: str, **changes: Any) -> Any:
    return library.SentenceTransformer(bench.folder_of(name, BertModel, **changes), device="cpu")


def teacher_folder(bench: Any, name: str = "teacher", **changes: Any) -> str:
    embedder(bench, name, **changes).save_pretrained(str(bench.folder / f"{name}-trained"))
    return str(bench.folder / f"{name}-trained")


def parts(model: Any, inputs: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """The outputs of the layers, and queries, keys and values of the last one, without any hook."""
    inner = transformer(model)
    states = inner(**inputs, output_hidden_states=True).hidden_states
    attention = inner.encoder.layer[-1].attention.self
    return list(states[1:]), tuple(part(states[-2]) for part in (attention.query, attention.key, attention.value))


@pytest.mark.parametrize("loss", LOSSES)
def test_layer_losses_are_those_of_the_same_texts(loss: str, bench: Any) -> None:
    model, folder = embedder(bench, "student"), teacher_folder(bench)
    run = bench.trainer("run", model, LOSSES[loss], max_steps=1)
    taught(run, distill_teacher=folder, distill_alpha=0.5, distill_layer_loss=["hidden=2", "relations=0.5"])
    seen, collate, calls = [], run.data_collator, []
    run.data_collator = type("Seen", (), {"__call__": lambda _, rows: (seen.append(rows), collate(rows))[1],
                                          "valid_label_columns": collate.valid_label_columns})()  # fmt: skip
    model[0].register_forward_pre_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run.train()
    assert loss == "cached" or len(calls) == 2, "the student was called again"
    assert {*model.state_dict()} == {*before}, "something was left in the student"
    model.load_state_dict(before)
    model.eval()
    total, distilled, own, hidden, relations = logged(
        run, "loss", "distill_loss", "label_loss", "hidden_loss", "relations_loss"
    )[0]
    assert total == pytest.approx(0.5 * distilled + 0.5 * own + 2 * hidden + 0.5 * relations, abs=2e-3)
    expected = {"hidden": [], "relations": []}
    teacher = library.SentenceTransformer(folder, device="cpu")
    for column in ("anchor", "positive"):
        inputs = model.preprocess([row[column] for row in seen[0]])
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        mask = inputs["attention_mask"].bool()
        with torch.no_grad():
            (ours, our_last), (theirs, their_last) = parts(model, inputs), parts(teacher, inputs)
        for one, two in zip(ours, theirs, strict=True):
            expected["hidden"].append(LAYER_LOSSES["hidden"].function(one, two, mask).mean())
        expected["relations"].append(LAYER_LOSSES["relations"].function(our_last, their_last, mask).mean())
    assert hidden == pytest.approx(torch.stack(expected["hidden"]).mean().item(), rel=1e-3)
    assert relations == pytest.approx(torch.stack(expected["relations"]).mean().item(), rel=1e-2, abs=1e-5)


def test_projections_to_a_wider_teacher_are_resumed(bench: Any) -> None:
    """They live in the student while it trains, and in its checkpoints."""
    folder = teacher_folder(bench, "wide", hidden_size=48)
    options = {"distill_teacher": folder, "distill_layer_loss": ["hidden=1"]}
    whole = taught(bench.trainer("whole", embedder(bench, "student"), max_steps=4), **options)
    whole.train()
    first = bench.trainer("half", embedder(bench, "student"), max_steps=4, save_strategy="steps", save_steps=2)
    taught(first, **options).train()
    assert not any("projection" in name for name, _ in first.model.named_parameters())
    again = bench.trainer("half2", embedder(bench, "student"), max_steps=4)
    taught(again, **options).train(resume_from_checkpoint=str(bench.folder / "half" / "checkpoint-2"))
    ours, theirs = (torch.cat([p.flatten() for p in run.model.parameters()]) for run in (whole, again))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_layers_of_a_reranker_are_compared_on_its_pairs(bench: Any) -> None:
    folder = bench.folder_of("pair", BertForSequenceClassification, num_labels=1)
    model = library.CrossEncoder(folder, device="cpu", num_labels=1)
    run = bench.trainer("run", model, pair_losses.BinaryCrossEntropyLoss, train_dataset=bench.scored, max_steps=8)
    taught(run, distill_teacher="self", distill_alpha=0.1, distill_layer_loss=["hidden=1"], distill_dropout=0.0)
    run.train()
    values = [hidden for (hidden,) in logged(run, "hidden_loss")]
    assert values[0] == pytest.approx(0, abs=1e-6) and values[-1] > 1e-4, "the student left its teacher"


def test_other_tokens_are_refused_before_training(bench: Any) -> None:
    folder = teacher_folder(bench)
    model = embedder(bench, "student")
    model.tokenizer.add_tokens(["zymurgy"])
    with pytest.raises(ValueError, match=r"the teacher must have the student's tokenizer; .* Leave the option out"):
        taught(bench.trainer("run", model), distill_teacher=folder, distill_layer_loss=["hidden=1"])
