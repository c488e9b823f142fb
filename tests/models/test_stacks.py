"""The layers of a model in the order of their calls; queries, keys, values and padding inside them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForAudioClassification,
    BartConfig,
    BertConfig,
    DebertaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    ModernBertConfig,
    Phi3Config,
)

from hf_compress.distill.capturing import Capture
from hf_compress.models.stacks import (
    NoLayers,
    attention_of,
    layers_config,
    layers_of,
    query_key_value,
    stack_of,
    stacks,
    token_mask,
)
from tests.invariants.harness import adapted
from tests.invariants.test_heads import wav2vec2
from tests.invariants.test_images_and_sounds import CASES, build
from tests.tiny import bert

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "pad_token_id": 0,
}
SHARED = {"num_key_value_heads": 2, "tie_word_embeddings": False}
CONFIGS: dict[str, Any] = {
    "bert": BertConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1),
    "llama": LlamaConfig(**SIZES | SHARED),
    "phi3": Phi3Config(**SIZES | SHARED),
    "modernbert": ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, local_attention=4),
}


def heads_in(layer: torch.nn.Module, model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return queries, keys and values that a layer gives Transformers' attention, before rotary positions."""
    attention = attention_of(layer)
    assert attention is not None
    name, seen = type(model).__name__, []

    def note(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        if module is attention:
            seen[:] = [query, key, value]
        return torch.zeros(*query.shape[:1], query.shape[2], query.shape[1], query.shape[3]), None

    from transformers import AttentionInterface

    AttentionInterface.register(f"note-{name}", note)
    model.config._attn_implementation_internal = f"note-{name}"
    model(**inputs)
    return [part.transpose(1, 2).flatten(2) for part in seen]


@pytest.mark.parametrize("name", CONFIGS)
def test_queries_keys_and_values_are_those_that_attention_gets(name: str) -> None:
    model = AutoModel.from_config(CONFIGS[name]).eval()
    # At the first position, rotary positions turn nothing.
    inputs = {"input_ids": torch.arange(3, 9).reshape(6, 1), "attention_mask": torch.ones(6, 1, dtype=torch.long)}
    capture = Capture([("relations", 0)])
    capture.install(model)
    with torch.no_grad(), capture.active():
        ((query, key, value),) = model(**inputs).captured
    capture.remove()
    with torch.no_grad():
        expected = heads_in(layers_of(model)[0], model, inputs)
    for ours, theirs in zip((query, key, value), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_shared_heads_of_keys_have_narrower_keys() -> None:
    for name in ("llama", "phi3"):
        model = AutoModel.from_config(CONFIGS[name])
        found = query_key_value(layers_of(model)[1], model.config)
        assert found is not None and found.widths == (16, 8, 8)


def test_an_adapter_changes_neither_layers_nor_widths() -> None:
    base = bert()
    model = adapted(base)
    found = query_key_value(layers_of(model.get_base_model())[0], base.config)
    assert found is not None and found.widths == (32, 32, 32)


@pytest.mark.parametrize(("groups", "expected"), [(1, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (4, [0, 1, 2, 3])])
def test_shared_layers_appear_once_for_each_call(groups: int, expected: list[int]) -> None:
    config = AlbertConfig(**SIZES | {"num_hidden_layers": 4}, num_hidden_groups=groups, embedding_size=8)
    model = AutoModel.from_config(config).eval()
    distinct = list(dict.fromkeys(layers_of(model)))
    assert [distinct.index(layer) for layer in layers_of(model)] == expected
    capture = Capture([("hidden", number) for number in range(4)])
    capture.install(model)
    with torch.no_grad(), capture.active():
        found = model(torch.tensor([[3, 4, 5]])).captured
    with torch.no_grad():
        states = model(torch.tensor([[3, 4, 5]]), output_hidden_states=True).hidden_states[1:]
    assert all(torch.equal(one, other) for one, other in zip(found, states, strict=True))


def test_queries_mixed_with_keys_are_not_taken_apart() -> None:
    for config in (GPTNeoXConfig(**SIZES), DebertaConfig(**SIZES)):
        model = AutoModel.from_config(config)
        assert attention_of(layers_of(model)[0]) is not None
        assert query_key_value(layers_of(model)[0], model.config) is None
        with pytest.raises(NoLayers, match="has queries and keys of unknown names"):
            Capture([("relations", 0)]).install(model)


def test_two_stacks_are_refused() -> None:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    model = AutoModel.from_config(
        BartConfig(vocab_size=20, **sizes, encoder_attention_heads=1, decoder_attention_heads=1)
    )
    with pytest.raises(NoLayers, match="BartModel has two stacks of layers, an encoder and a decoder"):
        layers_of(model)


@pytest.mark.parametrize("name", ["clip", "siglip", "whisper"])
def test_a_tower_or_an_encoder_alone_has_one_stack(name: str) -> None:
    case = next(case for case in CASES if case.config == name)
    model = build(case)
    assert len(layers_of(model)) == 2 and list(stacks(model).values()) == [stack_of(model)[1]]
    config = layers_config(model)
    assert config.num_hidden_layers == 2 and (config is model.config) == (name == "whisper")
    assert query_key_value(layers_of(model)[0], config) is not None


@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_stages_are_not_taken_for_layers(name: str) -> None:
    model = build(next(case for case in CASES if case.config == name))
    assert stacks(model) == {}
    with pytest.raises(NoLayers, match=r"has stages of different widths \(`config.depths`\) in place of equal layers"):
        layers_of(model)


def test_the_mask_of_a_waveform_is_shortened_with_it() -> None:
    model = AutoModelForAudioClassification.from_config(wav2vec2(num_labels=2)).eval()
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, 50:] = 0
    with torch.no_grad():
        frames = model.wav2vec2(torch.randn(2, 100), attention_mask=mask).last_hidden_state.shape[1]
    found = token_mask(model, {"attention_mask": mask}, 2, frames)
    assert found is not None and found.shape == (2, frames)
    assert found[0].all() and 0 < found[1].sum() <= frames / 2 + 1


def test_a_mask_of_another_length_is_unknown() -> None:
    assert token_mask(bert(), {"attention_mask": torch.ones(2, 7)}, 2, 5) is None
    assert token_mask(bert(), {}, 2, 5) is not None
