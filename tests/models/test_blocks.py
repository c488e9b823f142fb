"""Neurons and heads that can be taken out: found in every family, with every layer that holds their values."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    DebertaConfig,
    DebertaV2Config,
    GPT2Config,
    GPTNeoXConfig,
    ModernBertDecoderConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
    ViTConfig,
    WhisperConfig,
)

from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import Groups, NoGroups, Part
from hf_compress.models.targets import prunable
from tests.invariants.test_heads import wav2vec2
from tests.invariants.test_models import CONFIGS, HIDDEN, SIZES, SPECIAL

BIAS_PER_HEAD = {"mpnet", "t5"}
SMALL = {**SPECIAL, **SIZES}
MORE: dict[str, Any] = {
    "phi3": Phi3Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=False),
    "modernbert-decoder": ModernBertDecoderConfig(**SMALL, cls_token_id=2, sep_token_id=3, local_attention=4),
    "qwen3": Qwen3Config(**{**SMALL, "num_attention_heads": 4}, num_key_value_heads=2, head_dim=8),
    "whisper": WhisperConfig(
        **SPECIAL,
        d_model=HIDDEN,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=8,
        max_target_positions=8,
        decoder_start_token_id=1,
        num_mel_bins=4,
    ),
    "deberta-v2-apart": DebertaV2Config(
        **SMALL,
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["c2p", "p2c"],
        share_att_key=False,
        position_biased_input=False,
        type_vocab_size=0,
    ),
}


def made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "wav2vec2":
        model = AutoModelForAudioClassification.from_config(wav2vec2())
    elif family == "vit":
        config = ViTConfig(**{**SIZES, "image_size": 8, "patch_size": 4, "num_channels": 1})
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = AutoModel.from_config(MORE[family] if family in MORE else CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model.eval()


def outputs(model: PreTrainedModel) -> Tensor:
    torch.manual_seed(1)
    if model.main_input_name != "input_ids":
        names = {"pixel_values": (2, 1, 8, 8), "input_values": (2, 400), "input_features": (2, 4, 16)}
        batch = {model.main_input_name: torch.randn(names[model.main_input_name])}
    else:
        batch = {"input_ids": torch.randint(4, 40, (2, 8))}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(4, 40, (2, 8))
    with torch.no_grad():
        return model(**batch)[0]


def vectors(part: Part) -> Iterator[tuple[Tensor, int]]:
    """Yield the tensors of a producer with values of its groups, each with the dimension that enumerates them."""
    yield part.target.weight, part.dim
    bias = getattr(part.target.module, "bias", None)
    if bias is not None:
        yield bias, 0


@torch.no_grad()
def overwrite(block: Groups, group: int) -> None:
    """Write other numbers wherever the layers compute this group."""
    for part in block.producers:
        places = part.indices()[group]
        for tensor, dim in vectors(part):
            tensor.index_copy_(dim, places, torch.randn_like(tensor.index_select(dim, places)))


@pytest.mark.parametrize("family", [*CONFIGS, *MORE, "wav2vec2", "vit"])
def test_a_group_that_nobody_reads_changes_nothing(family: str) -> None:
    model = made(family)
    kinds = ["neurons"] if family in BIAS_PER_HEAD else ["neurons", "heads"]
    found = find_groups(model, kinds)
    assert {block.kind for block in found} == set(kinds)
    for block in found:
        consumer = block.consumer
        assert block.count > 1 or (family in ("llama", "phi3") and block.kind == "heads")
        gone, stays = block.count - 1, 0
        with torch.no_grad():
            consumer.target.weight.index_fill_(consumer.dim, consumer.indices()[gone], 0)
        before = outputs(model)
        overwrite(block, gone)
        assert torch.equal(outputs(model), before)
        overwrite(block, stays)
        assert torch.equal(outputs(model), before) == (gone == stays)


@pytest.mark.parametrize("family", [*CONFIGS, *MORE, "wav2vec2", "vit"])
def test_all_values_of_the_layers_belong_to_one_group(family: str) -> None:
    kinds = ["neurons"] if family in BIAS_PER_HEAD else ["neurons", "heads"]
    seen: dict[str, Tensor] = {}
    for block in find_groups(made(family), kinds):
        assert [part.side for part in block.parts].count("inputs") == 1
        for part in block.parts:
            assert part.count == block.count
            owned = part.owners() >= 0
            before = seen.setdefault(f"{part.target.name} {part.side}", torch.zeros_like(owned))
            assert not (before & owned).any()
            before |= owned
    assert all(owned.all() for owned in seen.values())


def test_heads_that_share_keys_and_values_are_one_group() -> None:
    (block,) = find_groups(made("qwen3"), ["heads"])
    assert block.count == 2
    assert [(part.target.name.rpartition(".")[2], part.size) for part in block.parts] == [
        ("q_proj", 16),
        ("k_proj", 8),
        ("v_proj", 8),
        ("o_proj", 16),
    ]


def test_a_fused_layer_has_a_run_for_each_of_its_three() -> None:
    (gated, heads) = sorted(find_groups(made("modernbert"), ["neurons", "heads"])[:2], key=lambda block: block.kind)[
        ::-1
    ]
    assert gated.producers[0].starts == (0, 48)
    assert gated.producers[0].indices()[5].tolist() == [5, 53]
    assert heads.producers[0].starts == (0, HIDDEN, 2 * HIDDEN)
    shared = find_groups(made("phi3"), ["heads"])[0]
    assert [(part.starts, part.size) for part in shared.producers] == [((0,), 32), ((32, 48), 16)]


def test_layers_that_are_called_twice_have_one_set_of_groups() -> None:
    found = find_groups(made("albert"), ["neurons", "heads"])
    assert [block.kind for block in found] == ["heads", "neurons"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("mpnet", "MPNetSelfAttention takes a `position_bias` that has a part for every head"),
        ("t5", "T5Attention takes a `position_bias`"),
        (DebertaConfig(**SMALL), "in which order encoder.layer.0.attention.self.in_proj computes"),
        (GPTNeoXConfig(**SMALL), "in which order layers.0.attention.query_key_value computes their values"),
        (
            GPT2Config(**SPECIAL, n_embd=HIDDEN, n_layer=1, n_head=2, add_cross_attention=True),
            "q_attn.weight belongs to which head",
        ),
    ],
    ids=["mpnet", "t5", "deberta", "neox", "cross"],
)
def test_heads_that_cannot_go_alone_are_refused(model: Any, reason: str) -> None:
    model = made(model) if isinstance(model, str) else AutoModel.from_config(model)
    with pytest.raises(NoGroups, match=reason) as error:
        find_groups(model, ["heads"])
    assert "`--prune_pattern` without heads" in str(error.value)
    assert find_groups(model, ["neurons"])


def test_a_norm_over_all_heads_is_refused() -> None:
    model = made("llama")
    attention: Any = model.layers[0].self_attn
    attention.q_norm = nn.LayerNorm(HIDDEN, bias=False)
    with pytest.raises(NoGroups, match=r"q_norm.weight belongs to which head.*--prune_exclude layers.0.self_attn"):
        find_groups(model, ["heads"])
    assert [block.name for block in find_groups(model, ["neurons"])] == ["layers.0.mlp"]


def test_a_model_without_known_names_has_no_groups() -> None:
    with pytest.raises(NoGroups, match="GPT2Model has no heads that can be pruned. Exclude less"):
        find_groups(made("gpt2"), ["heads"], exclude=["attn"])


def test_a_block_with_an_excluded_layer_stays_whole() -> None:
    names = [block.name for block in find_groups(made("bart"), ["neurons"], exclude=["decoder.*fc2"])]
    assert names == ["encoder.layers.0"]


def test_groups_beside_an_adapter_are_those_of_the_model() -> None:
    plain = find_groups(made("bert"), ["neurons", "heads"])
    model = get_peft_model(made("bert"), LoraConfig(r=2, target_modules=["query", "dense"]))
    beside = find_groups(model, ["neurons", "heads"])
    assert [(block.name, block.count) for block in beside] == [(block.name, block.count) for block in plain]
    weights = {id(target.weight) for target in prunable(model)}
    assert all(id(part.target.weight) in weights for block in beside for part in block.parts)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_mask_covers_whole_groups_of_a_weight(family: str) -> None:
    for block in find_groups(made(family), ["heads"]):
        kept = torch.tensor([True, False])
        for part in block.parts:
            weight = part.target.weight.detach() * part.mask(kept)
            assert part.nonzero(weight).tolist() == [weight.numel() // 2, 0]


def test_groups_of_a_headed_model_leave_its_head_alone() -> None:
    model = AutoModelForMaskedLM.from_config(CONFIGS["bert"]())
    assert [block.name for block in find_groups(model, ["neurons"])] == ["bert.encoder.layer.0"]
