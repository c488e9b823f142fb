"""Random inputs for a model, by the kind of its main input: token ids, pixels, a waveform or a spectrogram."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

# Inputs that change what a text model computes, besides its labels and caches.
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"}
# What models call their learned positions.
POSITIONS = {"position_embeddings", "position_embedding", "embed_positions", "wpe"}
# Image models without a size in their configuration are convolutional: any size will do.
DEFAULT_IMAGE_SIZE = 64

Shape = Callable[[PreTrainedConfig, int], tuple[int, ...]]


def input_names(model: PreTrainedModel, main_input: str, decodes: bool) -> list[str]:
    """Return the inputs that decide what `model` computes, in the order of its `forward`.

    Args:
        main_input: the model's `main_input_name`.
        decodes: whether the model needs `decoder_input_ids`.
    """
    parameters = inspect.signature(type(model).forward).parameters
    if main_input == "input_ids":
        wanted = set(TEXT_INPUTS)
        if getattr(model.config, "type_vocab_size", 0) < 2:
            wanted.remove("token_type_ids")
        if not decodes:
            wanted.remove("decoder_input_ids")
    else:
        wanted = {main_input}
        # A mask of ones is the same as none, so a graph with a mask serves scripts that train with it or without.
        if main_input == "input_features" or hasattr(model, "_get_feature_vector_attention_mask"):
            wanted.add("attention_mask")
    return [name for name in parameters if name in wanted]


def random_tokens(config: PreTrainedConfig, shape: tuple[int, ...], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random token ids of `shape` and their attention mask; every row but the first is half padding.

    Special tokens are only where a model expects them: padding where the mask is 0, and the end token last.
    """
    text = config.get_text_config()
    special = {name: getattr(text, name, None) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    known = {number for number in special.values() if isinstance(number, int) and 0 <= number < text.vocab_size}
    plain = torch.tensor([number for number in range(text.vocab_size) if number not in known] or [0])
    ids = plain[torch.randint(len(plain), shape, generator=draw)]
    mask = torch.ones_like(ids)
    length = shape[-1]
    kept = max(length // 2, 1)
    mask[1:, ..., kept:] = 0
    if special["eos_token_id"] in known:
        ids[:1, ..., -1] = special["eos_token_id"]
        ids[1:, ..., kept - 1] = special["eos_token_id"]
    if special["pad_token_id"] in known:
        ids[1:, ..., kept:] = special["pad_token_id"]
    return ids, mask


def image_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Return the channels, height and width of the images that a model with this configuration reads."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or DEFAULT_IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return getattr(vision, "num_channels", 3), height, width


def _waveform(config: PreTrainedConfig, length: int) -> tuple[int, ...]:
    """Return the shape of one row of `input_values`: samples, or frames by mel bins for a spectrogram model."""
    if hasattr(config, "conv_stride"):
        # Enough samples for `length` frames after the convolutions that shorten the waveform.
        samples = length
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return (samples,)
    return (config.max_length, config.num_mel_bins)


def _spectrogram(config: PreTrainedConfig, length: int) -> tuple[int, ...]:
    """Return the shape of one row of `input_features`."""
    if hasattr(config, "num_mel_bins"):  # Whisper reads 30 seconds, at two frames a position.
        return (config.num_mel_bins, 2 * config.max_source_positions)
    return (length, config.feature_projection_input_dim)


SHAPES: dict[str, Shape] = {
    "pixel_values": lambda config, length: image_shape(config),
    "input_values": _waveform,
    "input_features": _spectrogram,
}


# What the last numbers of a main input count.
_UNITS = {"input_ids": "tokens", "pixel_values": "pixels", "input_values": "samples", "input_features": "values"}


def shape_in_words(config: PreTrainedConfig, main_input: str, rows: int, length: int) -> str:
    """Return the shape of a batch in words.

    Args:
        config: of the model.
        main_input: the model's `main_input_name`.
        rows: rows of the batch.
        length: tokens or frames of a row; images and spectrograms of a fixed size ignore it.

    Example:
        >>> from transformers import ViTConfig
        >>> from hf_compress.models.examples import shape_in_words
        >>> shape_in_words(ViTConfig(), "pixel_values", 1, 128)
        '1 x 224 x 224 pixels'
    """
    row = (length,) if main_input == "input_ids" else SHAPES[main_input](config, length)
    numbers = (rows, *(row[1:] if main_input == "pixel_values" else row))
    return f"{' x '.join(map(str, numbers))} {_UNITS[main_input]}"


def random_batch(
    model: PreTrainedModel, main_input: str, names: list[str], shape: tuple[int, ...], seed: int
) -> dict[str, Tensor]:
    """Return random values for the inputs `names` of `model`, on the CPU.

    Args:
        shape: rows first and length last; a multiple choice has its choices between them. `length` counts tokens or
            frames; images and spectrograms of a fixed size ignore it.
        seed: the same seed gives the same batch.
    """
    draw = torch.Generator().manual_seed(seed)
    if main_input == "input_ids":
        ids, mask = random_tokens(model.config, shape, draw)
        known: dict[str, Any] = {"attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return {name: known.get(name, ids) for name in names}
    row = SHAPES[main_input](model.config, shape[-1])
    values = torch.randn(shape[0], *row, generator=draw)
    batch = {main_input: values}
    if "attention_mask" in names:
        mask = batch["attention_mask"] = torch.ones(values.shape[:2], dtype=torch.long)
        mask[1:, max(row[0] // 2, SHAPES[main_input](model.config, 1)[0]) :] = 0  # One frame at least stays.
        values[mask == 0] = 0.0
    return {name: batch[name] for name in names}


def longest_text(model: nn.Module) -> int | None:
    """Return how many tokens the learned positions of a model allow, or None if they set no limit."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            # RoBERTa counts from behind its padding token; Bart and OPT leave out the first two.
            offset = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    return None


def pools_by_padding(config: PreTrainedConfig) -> bool:
    """Return whether a classifier with this configuration reads its prediction at the last token before padding."""
    kinds = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return config.model_type in kinds[0] and config.model_type not in kinds[1]


def fits(student: PreTrainedConfig, teacher: PreTrainedConfig, main_input: str) -> str | None:
    """Return why a teacher cannot read the student's inputs, or None if it can.

    Text needs one vocabulary, images one shape, spectrograms the same number of mel bins; waveforms always fit.
    """
    if main_input == "input_ids":
        sizes = [config.get_text_config().vocab_size for config in (student, teacher)]
        if sizes[0] != sizes[1]:
            larger, smaller = ("teacher", sizes[0]) if sizes[1] > sizes[0] else ("student", sizes[1])
            return (
                f"The teacher's embeddings have rows for {sizes[1]} tokens, the student's for {sizes[0]}. If both "
                f"have the same tokenizer, the {larger}'s rows are only padded: call "
                f"`resize_token_embeddings({smaller})` on the {larger}, if that is no fewer than the tokenizer's "
                "tokens. If the student's tokenizer was cut, cut the teacher with `hf_compress.cut_vocabulary` and "
                "the same texts. Otherwise use a teacher with the student's tokenizer."
            )
        return None
    shapes = [SHAPES[main_input](config, 1) for config in (student, teacher)]
    # The lengths of a waveform with convolutions are free.
    if shapes[0] != shapes[1] and not (main_input == "input_values" and all(len(shape) == 1 for shape in shapes)):
        return (
            f"The teacher reads `{main_input}` of shape {shapes[1]}, the student of shape {shapes[0]}. Use a teacher "
            "that reads the same inputs, or load one of the two with the other's size."
        )
    return None
