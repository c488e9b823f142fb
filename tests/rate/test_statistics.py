"""Sensitivities are the diagonal of the Gauss-Newton matrix; moments are X'X without padding."""

from collections.abc import Callable

import pytest
import torch
from torch.autograd.functional import jacobian
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from hf_compress.models.targets import quantizable
from hf_compress.rate import embedding, gather

MakeBert = Callable[..., BertForSequenceClassification]
TEXT = {
    "input_ids": torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
}


def _batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [{**TEXT, "labels": torch.tensor([0, 1])}] * count


def _expected(model: PreTrainedModel, name: str) -> float:
    """The mean squared entry of the Jacobian of the logits, summed over logits, per row."""
    parameter = model.get_submodule(name).weight

    def logits(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {f"{name}.weight": weight}, (), TEXT).logits

    return float(jacobian(logits, parameter.detach()).square().sum()) / 2 / parameter.numel()


@pytest.mark.parametrize("layer", ["embeddings.word_embeddings", "encoder.layer.0.output.dense"])
def test_sensitivity_is_the_mean_of_the_gauss_newton_diagonal(layer: str, make_bert: MakeBert) -> None:
    model = make_bert(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1).eval()
    targets = [target for target in quantizable(model) if target.name.endswith(layer)]
    found = gather(model, targets, _batches(400)).sensitivity[targets[0].name]
    assert found == pytest.approx(_expected(model, targets[0].name), rel=0.1)


def test_moments_leave_padding_out_and_are_shared_by_siblings(make_bert: MakeBert) -> None:
    model = make_bert(num_hidden_layers=1).eval()
    seen: list[torch.Tensor] = []
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    handle = query.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    moments = gather(model, quantizable(model), _batches(2)).moments
    handle.remove()
    rows = seen[0][TEXT["attention_mask"].bool()]
    named = {name.rpartition(".")[2]: value for name, value in moments.items() if "self" in name}
    assert torch.allclose(named["query"], 2 * rows.t() @ rows, rtol=1e-4)
    assert named["query"] is named["key"] is named["value"]


def test_rows_of_bart_s_positions_are_those_looked_up() -> None:
    """Its embedding of positions is given the embedded words, and computes the row numbers from their shape."""
    sizes = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = BartConfig(vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1, num_labels=2, **sizes)
    model = BartForSequenceClassification(config).eval()
    ids = torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2]])
    uses = gather(model, quantizable(model), [{"input_ids": ids}]).uses
    assert uses["model.encoder.embed_positions"].nonzero().flatten().tolist() == [2, 3, 4, 5], "after an offset of 2"
    words = {name: counts for name, counts in uses.items() if name.startswith("model.encoder.embed_tokens")}
    assert all(torch.equal(counts, torch.bincount(ids.flatten(), minlength=9)) for counts in words.values()) and words


def test_the_model_is_as_before_and_labels_are_not_used(make_bert: MakeBert) -> None:
    model = make_bert().train()
    model.classifier.requires_grad_(False)
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.random.get_rng_state()
    gather(model, quantizable(model), _batches(1))
    assert model.training and not model.classifier.weight.requires_grad
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_without_head_is_judged_by_its_embedding(make_bert: MakeBert) -> None:
    model = BertModel(make_bert(num_hidden_layers=1).config).eval()
    targets = quantizable(model)
    assert all(value >= 0 for value in gather(model, targets, _batches(1)).sensitivity.values())
    hidden = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    assert torch.allclose(embedding(hidden, torch.tensor([[1, 0]])), torch.tensor([[0.6, 0.8]]))


def test_an_empty_sample_is_refused(make_bert: MakeBert) -> None:
    model = make_bert()
    with pytest.raises(ValueError, match="sample of rows is empty"):
        gather(model, quantizable(model), [])


def test_moments_under_16_bit_autocast_can_be_inverted(make_bert: MakeBert) -> None:
    model = make_bert(hidden_size=64, intermediate_size=96)
    targets = [target for target in quantizable(model) if target.kind == "linear"]
    with torch.autocast("cpu", torch.bfloat16):
        moments = gather(model, targets, [{"input_ids": torch.arange(400).reshape(40, 10) % 29}]).moments
        one = next(iter(moments.values()))
        assert (one @ one).dtype == torch.bfloat16, "a product under autocast would be rounded to 16 bits"
    for name, moment in moments.items():
        values = torch.linalg.eigvalsh(moment.double())
        assert values.min() > -1e-5 * values.max(), name
