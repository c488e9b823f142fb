"""Every supported architecture of images and sounds goes through all methods, to disk and back, and into layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    CLIPConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    HubertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

from hf_compress.models.heads import find_head
from tests.invariants.test_models import Case, embedding_names, linear_names

IMAGE, AUDIO = AutoModelForImageClassification, AutoModelForAudioClassification
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
PATCHES = {"image_size": 8, "patch_size": 4}
WAVEFORM: dict[str, Any] = {
    "conv_dim": [8, 8],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
}
STAGES = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
SPECTROGRAM: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    # No decoder is built, so its depth must not matter.
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "classifier_proj_size": 8,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "vit": lambda **changes: ViTConfig(**SIZES, **PATCHES, **changes),
    # Two classes have this configuration, so it has to name one.
    "deit": lambda **changes: DeiTConfig(**SIZES, **PATCHES, architectures=["DeiTForImageClassification"], **changes),
    "dinov2": lambda **changes: Dinov2Config(
        **{name: size for name, size in SIZES.items() if name != "intermediate_size"},
        **PATCHES,
        mlp_ratio=2,
        **changes,
    ),
    "swin": lambda **changes: SwinConfig(**STAGES, **changes),
    "convnext": lambda **changes: ConvNextConfig(
        image_size=32, hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, **changes
    ),
    "clip": lambda **changes: CLIPConfig(vision_config={**SIZES, **PATCHES, "projection_dim": 8}, **changes),
    "siglip": lambda **changes: SiglipConfig(vision_config={**SIZES, **PATCHES}, **changes),
    "wav2vec2": lambda **changes: Wav2Vec2Config(**SIZES, **WAVEFORM, **changes),
    "hubert": lambda **changes: HubertConfig(**SIZES, **WAVEFORM, **changes),
    "whisper": lambda **changes: WhisperConfig(**SPECTROGRAM, **changes),
}
CASES = [
    *(Case(name, IMAGE, {"classifier"}) for name in ("vit", "deit", "dinov2", "swin", "convnext", "clip", "siglip")),
    *(Case(name, AUDIO, {"projector", "classifier"}) for name in ("wav2vec2", "hubert", "whisper")),
]
FAST = ("vit", "whisper")
# `nn.MultiheadAttention` reads the weight of its last layer and does not call it, so it is never rounded.
READ_OTHERWISE = {"siglip": {"vision_model.head.attention.out_proj"}}


def build(case: Case) -> PreTrainedModel:
    model: PreTrainedModel = case.auto_class.from_config(CONFIGS[case.config](**case.changes))
    return model


def rows_for(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Eight rows of random pixels or samples, those of sounds padded, with labels."""
    values = find_head(model).example_batch(model, rows=8)
    labels = torch.arange(8) % 2
    return [{name: value[row] for name, value in (values | {"labels": labels}).items()} for row in range(8)]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id, marks=() if case.config in FAST else pytest.mark.slow) for case in CASES],
)
def test_images_and_sounds_survive_all_methods_and_loading(case: Case, round_trip: Any) -> None:
    model = build(case)
    trip = round_trip(model, rows_for(model), case.scheme)
    trip.check()
    linear = linear_names(trip.reloaded)
    assert case.head <= linear
    assert trip.pruned & linear == linear - case.head
    known = linear | embedding_names(trip.reloaded)
    floating = READ_OTHERWISE.get(case.config, set())
    assert trip.quantized & known == known - case.head - floating
    idle = {f"{name}.input_range" for name in floating}
    assert set(trip.reloaded.state_dict()) == set(trip.trained.state_dict()) - idle


def test_every_architecture_of_images_and_sounds_is_known() -> None:
    for name, make in CONFIGS.items():
        assert type(AutoConfig.for_model(name)) is type(make())
    assert {case.config for case in CASES} == {*CONFIGS}
