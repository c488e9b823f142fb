"""Saving a compressed model: a folder that `from_pretrained` reads, once the model is what its recipe promises."""

import copy
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch.distributed as dist
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.quantizer import CompressionQuantizer
from hf_compress.layers.attention import OPERANDS, attention_modules, trained_attention
from hf_compress.layers.bits import weight_grids
from hf_compress.layers.grids import Grid
from hf_compress.layers.rounded import compressed_layers, rounded
from hf_compress.models.sharding import count_zeros, reshard, whole_on_first
from hf_compress.models.targets import Target, prunable, quantizable
from hf_compress.prune.criteria import Scope, zero_counts
from hf_compress.recipe import Recipe

logger = logging.get_logger(__name__)

RECIPE_NAME = "recipe.json"


def save_compressed(
    model: PreTrainedModel | PeftModel,
    folder: str | Path,
    recipe: Recipe,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Path:
    """The folder with the compressed `model`, which it is written to: weights, config, recipe and tokenizer.

    After `import hf_compress`, `AutoModelFor*.from_pretrained(folder)` gives a model whose logits equal those of the
    trained one bit for bit on the same device. The model itself is left as it is. The folder appears when it is
    complete, never half-written.

    On several processes all may call it, the first one writes. Where FSDP2 has sharded the weights all must: they are
    gathered one at a time.

    Args:
        model: as it came out of training with the callbacks of `recipe`; an adapter is merged, on a copy.
        folder: a path that does not exist yet, or an empty folder.
        processing_class: the tokenizer, saved beside the model if given.

    Raises:
        ValueError: the folder is not empty, or the model is not what the recipe promises: too few zeros, or layers
            that were never quantized.
    """
    reshard(model)
    folder, first = Path(folder), not dist.is_initialized() or dist.get_rank() == 0
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if not (first or sharded):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"`{folder}` is not empty. Give a new folder for the compressed checkpoint, or remove that one."
        )
    if isinstance(model, PeftModel):
        model = cast(PreTrainedModel, copy.deepcopy(model).merge_and_unload())
    _check_promise(model, recipe)
    grids = _promised_grids(model, recipe)
    stored = {target.name for target in rounded(model, [target for target, _ in grids])}
    config = CompressionConfig(
        scheme=asdict(recipe.quantization.scheme) if recipe.quantization.enabled else None,
        quantized=[target.name for target, _ in grids if target.name in stored],
        pruned=[target.name for target in prunable(model, recipe.pruning.prune_exclude)]
        if recipe.pruning.enabled
        else [],
        attention=trained_attention(model)
        if recipe.quantization.enabled and recipe.quantization.scheme.attention
        else [],
        bits={
            target.name: grid.bits
            for target, grid in grids
            if target.name in stored and grid.bits != recipe.quantization.scheme.of(target.shares_embedding).bits
        },
    )
    packs = bool(config.quantized or config.pruned)
    # Modules and weights are shared with the model; only what saving writes to is our own. `copy.copy` would build a
    # model that FSDP has sharded anew.
    shallow = object.__new__(type(model))
    vars(shallow).update(vars(model))
    shallow.config = copy.deepcopy(model.config)
    vars(shallow.config).pop("distributed_config", None)  # By it, saving would gather again, on this process alone.
    shallow.hf_quantizer = None
    shallow.config.quantization_config = config if packs else None
    if not packs:
        del shallow.config.quantization_config
    if packs:
        state, _ = CompressionQuantizer(config).get_state_dict_and_metadata(shallow)
    else:
        state = dict(whole_on_first(shallow.state_dict()))
    if not first:
        return folder
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shallow.save_pretrained(aside, state_dict=state, save_original_format=not packs)
    if processing_class is not None:
        processing_class.save_pretrained(aside)
    recipe.save(aside / RECIPE_NAME)
    size = sum(file.stat().st_size for file in aside.glob("*.safetensors"))
    if size > recipe.budget.bytes:
        logger.warning(
            f"The file of the compressed model has {size / 1e6:.2f} MB, more than `--compress_budget_mb "
            f"{recipe.budget.compress_budget_mb:g}` asks for. Train it with `hf_compress.compress(trainer, recipe)`, "
            "which chooses what will fit; if that was done, ask for a little less."
        )
    if folder.exists():
        folder.rmdir()
    return aside.rename(folder)


def _promised_grids(model: PreTrainedModel, recipe: Recipe) -> list[tuple[Target, Grid]]:
    """The layers that the recipe quantizes, each with the grid of its weight."""
    options = recipe.quantization
    if not options.enabled:
        return []
    return weight_grids(quantizable(model, options.quant_exclude), options.scheme, options.quant_bits)


def _check_promise(model: PreTrainedModel, recipe: Recipe) -> None:
    """Refuse a model that is denser than the recipe says, or not quantized where it says so."""
    if recipe.pruning.enabled:
        targets = prunable(model, recipe.pruning.prune_exclude)
        weights = list({id(target.weight): target.weight for target in targets}.values())  # Tied ones count once.
        numbers = [weight.numel() for weight in weights]
        zeros = sum(count_zeros(weights))
        sparsity, scope = recipe.pruning.prune_sparsity, cast(Scope, recipe.pruning.prune_scope)
        if zeros < sum(zero_counts(numbers, sparsity, scope)):
            raise ValueError(
                f"the recipe asks for `--prune_sparsity {sparsity}`, the model has {zeros / sum(numbers):.4f} of its "
                "prunable weights at zero. Train it with `callbacks=recipe.callbacks()` until `--prune_end`."
            )
    if recipe.quantization.enabled:
        layers = compressed_layers(model)
        grids = _promised_grids(model, recipe)
        missing = [
            target.name
            for target, grid in grids
            if target.name not in layers or layers[target.name].weight_grid != grid
        ]
        if recipe.quantization.scheme.attention:
            modules = attention_modules(model, recipe.quantization.quant_exclude)
            missing += [name for name, module in modules.items() if OPERANDS not in module._modules]
        own = {name: layer for name, layer in layers.items() if layer.weight_grid is not None}
        idle = [name for name, layer in own.items() if not layer.quantizing or (layer.rounded and not layer.ready)]
        if not rounded(model, [target for target, _ in grids]):
            idle = idle or list(own)
        if missing or idle:
            raise ValueError(
                f"the recipe asks for `{recipe.quantization.flags}`, but "
                f"{len(missing) + len(idle)} layers, such as {(missing + idle)[0]}, were not trained for it. Train "
                "with `callbacks=recipe.callbacks()` beyond `--quant_begin`."
            )
