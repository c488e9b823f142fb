"""Save a compressed model: a folder that `from_pretrained` reads, after checking the model against its recipe."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch.distributed as dist
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_compress.checkpoint.aside import check_free, written_aside
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.quantizer import CompressionQuantizer
from hf_compress.checkpoint.reader import add_reader
from hf_compress.checkpoint.view import view_of, without_groups, without_layers
from hf_compress.cut.depth import Depth
from hf_compress.layers.attention import OPERANDS, trained_attention
from hf_compress.layers.bits import weight_grids
from hf_compress.layers.grids import Grid
from hf_compress.layers.probe import attention_modules
from hf_compress.layers.turning import compressed_layers, rounded
from hf_compress.models.sentences import save_around, sentence_kind
from hf_compress.models.sharding import reshard, whole_on_first
from hf_compress.models.skipping import skipped_layers
from hf_compress.models.targets import Target, quantizable, transformer
from hf_compress.models.widths import widths_of
from hf_compress.prune.coverage import Coverage, pruned_layers
from hf_compress.prune.patterns import PATTERNS
from hf_compress.recipe import Recipe

logger = logging.get_logger(__name__)

RECIPE_NAME = "recipe.json"


def save_compressed(
    model: PreTrainedModel | PeftModel | nn.Module,
    folder: str | Path,
    recipe: Recipe,
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    strict: bool = True,
) -> Path:
    """Write the compressed `model` to `folder` and return its path: weights, config, recipe and tokenizer.

    Neurons and heads that a pattern of groups has pruned are not in the files: their matrices are smaller. Layers that
    `--prune_layers` has dropped are not either: the configuration says the smaller number. After
    `import hf_compress`, `AutoModelFor*.from_pretrained(folder)` returns a model whose logits equal those of the
    trained one bit for bit on the same device; without neurons or heads, up to floating-point rounding. The model is
    not changed. The folder appears when it is complete, never half-written. A model of sentence-transformers gets the
    folder that its own class loads.

    Collective where FSDP2 shards the weights: every rank must call it, because weights are gathered one at a time.
    Elsewhere any rank may call it. Rank 0 writes.

    Args:
        model: as it came out of training with the callbacks of `recipe`: of Transformers, or a `SentenceTransformer`,
            `CrossEncoder` or `SparseEncoder`. An adapter is merged, in a copy.
        folder: a path that does not exist yet, or an empty folder.
        recipe: the plan that the model was trained by. It is checked: the model must have its zeros and its grids.
        processing_class: the tokenizer or processor, saved beside the model if given.
        strict: whether a model with fewer zeros than the recipe asks for is refused. Otherwise the log says so.

    Raises:
        ValueError: the folder is not empty, or the model does not keep the recipe: it has too few zeros, or layers
            that were never quantized.
        OSError: the files cannot be written, for example on a full disk.

    Example:
        >>> import tempfile
        >>> import hf_compress
        >>> from transformers import AutoModelForSequenceClassification, BertConfig
        >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> model = AutoModelForSequenceClassification.from_config(config)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     folder = hf_compress.save_compressed(model, out, hf_compress.Recipe())
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors', 'recipe.json']
    """
    reshard(model)
    first = not dist.is_initialized() or dist.get_rank() == 0
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if not (first or sharded):
        return Path(folder)
    target = check_free(folder)
    whole, model = model, transformer(model)
    if isinstance(model, PeftModel):
        model = cast(PreTrainedModel, copy.deepcopy(model).merge_and_unload())
    if skipped_layers(model):
        model = without_layers(view_of(model))
    _check_depth(model, recipe, strict)
    grids = _promised_grids(model, recipe)
    _check_zeros(model, recipe, strict)
    _check_grids(model, recipe, grids)
    view = _view(model, recipe)
    config = _config(model, recipe, grids, widths_of(view))
    view.config.quantization_config = config
    if config is None:
        del view.config.quantization_config
    state = _state(view, config)
    if not first:
        return Path(folder)
    with written_aside(target.parent, target.name, replace=False) as aside:
        try:
            options = {"state_dict": state, "save_original_format": config is None}
            if sentence_kind(whole) is None:
                view.save_pretrained(aside, **options)
            else:
                save_around(whole, view, aside, **options)
        except SafetensorError as error:  # A full disk, for example, of which safetensors makes an error of its own.
            raise OSError(f"{folder} could not be written: {error}") from error
        add_reader(aside)
        if processing_class is not None and sentence_kind(whole) is None:
            processing_class.save_pretrained(aside)
        recipe.shareable().save(aside / RECIPE_NAME)
        _warn_of_size(aside, recipe)
    return Path(folder)


def _promised_grids(model: PreTrainedModel, recipe: Recipe) -> list[tuple[Target, Grid]]:
    """Return the layers that the recipe quantizes, each with the grid of its weight."""
    options = recipe.quantization
    if not options.enabled:
        return []
    return weight_grids(quantizable(model, options.quant_exclude), options.scheme, options.quant_bits)


def _check_depth(model: PreTrainedModel, recipe: Recipe, strict: bool) -> None:
    """Refuse a model from which fewer layers were dropped than the recipe asks for, or warn of it."""
    asked, depth = recipe.pruning.prune_layers, Depth.of(model.config)
    dropped = 0 if depth is None else len(depth.dropped)
    if dropped < asked:
        message = (
            f"The recipe asks for `--prune_layers {asked}`, but {dropped} layers were dropped. Train it with "
            "`callbacks=recipe.callbacks()` until `--prune_end`."
        )
        if strict:
            raise ValueError(message)
        logger.warning(message)


def _check_zeros(model: PreTrainedModel, recipe: Recipe, strict: bool) -> None:
    """Refuse a model with fewer zeros than the recipe asks for, or warn of it."""
    if not recipe.pruning.enabled:
        return
    coverage, sparsity = Coverage.of(model, recipe.pruning), recipe.pruning.goal
    zeros = coverage.found()
    if short := coverage.short(sparsity, zeros):
        share = sum(zeros) / sum(contest.total for contest in coverage.contests)
        message = (
            f"The recipe asks for {recipe.pruning.asked}, but only {share:.4f} of the {coverage.pattern.units} "
            f"are zero, too few in {short[0]}. Train it with `callbacks=recipe.callbacks()` until `--prune_end`."
        )
        if strict:
            raise ValueError(message)
        logger.warning(message)


def _check_grids(model: PreTrainedModel, recipe: Recipe, grids: list[tuple[Target, Grid]]) -> None:
    """Refuse a model in which a layer that the recipe quantizes has not been trained on its grid."""
    if not recipe.quantization.enabled:
        return
    layers = compressed_layers(model)
    missing = [
        target.name for target, grid in grids if target.name not in layers or layers[target.name].weight_grid != grid
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
            f"The recipe asks for `{recipe.quantization.flags}`, but {len(missing) + len(idle)} layers were not "
            f"trained for it, for example {(missing + idle)[0]}. Train with `callbacks=recipe.callbacks()` beyond "
            "`--quant_begin`."
        )


def _view(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Return the model to save, without the groups that were pruned. Collective where weights are sharded."""
    view, options = view_of(model), recipe.pruning
    kinds = PATTERNS[options.prune_pattern].kinds if options.enabled else ()
    return without_groups(view, kinds, options.prune_exclude, uniform=options.prune_uniform) if kinds else view


def _config(
    model: PreTrainedModel, recipe: Recipe, grids: list[tuple[Target, Grid]], widths: dict[str, list[int]]
) -> CompressionConfig | None:
    """Return the `quantization_config` of the model; None if the recipe changes no weight.

    Args:
        widths: of the layers that are saved smaller than the configuration says.
    """
    scheme = recipe.quantization.scheme if recipe.quantization.enabled else None
    prunes = recipe.pruning.enabled
    names = {target.name for target in rounded(model, [target for target, _ in grids])}
    stored = [(target, grid) for target, grid in grids if target.name in names]
    layers = compressed_layers(model)
    config = CompressionConfig(
        scheme=None if scheme is None else asdict(scheme.grids),
        quantized=[target.name for target, _ in stored],
        pruned=[target.name for target in pruned_layers(model, recipe.pruning)] if prunes else [],
        attention=trained_attention(model) if scheme is not None and scheme.attention else [],
        steps=any(layers[target.name].step is not None for target, _ in stored),
        bits={
            target.name: grid.bits
            for target, grid in stored
            if scheme is not None and grid.bits != scheme.of(target.shares_embedding).bits
        },
        widths=widths,
    )
    return config if config.quantized or config.pruned or config.widths else None


def _state(view: PreTrainedModel, config: CompressionConfig | None) -> dict[str, Tensor]:
    """Return the tensors of the file: packed if there is a `config`. Collective where weights are sharded."""
    if config is None:
        return dict(whole_on_first(view.state_dict()))
    state, _ = CompressionQuantizer(config).get_state_dict_and_metadata(view)
    return state


def _warn_of_size(folder: Path, recipe: Recipe) -> None:
    """Warn if the file is larger than the budget of the recipe."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > recipe.budget.bytes:
        smaller = 0.999 * recipe.budget.bytes**2 / size / 1e6
        logger.warning(
            f"The packed file has {size / 1e6:.4g} MB, more than `--compress_budget_mb "
            f"{recipe.budget.compress_budget_mb:g}` allows: training has changed the weights since their steps were "
            "chosen, and weights beside an adapter are not trimmed to the budget at the end. The model is complete. "
            f"For a smaller file train with `--compress_budget_mb {smaller:.3g}`."
        )
