"""Linear layers with fewer outputs or inputs than the configuration of their model says."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.models.layer_kinds import LayerKind, kind
from hf_compress.models.targets import named_modules

Width = tuple[int, int]  # Outputs and inputs.
# The attribute of a model that keeps the widths which its configuration says, by the names of layers that have others.
_DECLARED = "_hf_compress_widths"
# Attributes of a module of attention that count heads, or outputs of its layers.
_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads", "all_head_size", "split_size")


def width_of(layer: nn.Module) -> Width:
    """Return the number of outputs and of inputs of a linear layer.

    Example:
        >>> from torch import nn
        >>> from hf_compress.models.widths import width_of
        >>> width_of(nn.Linear(3, 2))
        (2, 3)
    """
    rows, columns = layer.weight.shape  # type: ignore[union-attr,misc]
    return (columns, rows) if kind(layer) == "conv1d" else (rows, columns)


def widths_of(model: nn.Module) -> dict[str, list[int]]:
    """Return outputs and inputs of the layers of `model` that have fewer than its configuration says, by name.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.widths import resize, widths_of
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> widths_of(model)
        {}
        >>> widths = {"encoder.layer.0.intermediate.dense": (4, 8), "encoder.layer.0.output.dense": (8, 4)}
        >>> resize(model, widths)
        >>> widths_of(model)
        {'encoder.layer.0.intermediate.dense': [4, 8], 'encoder.layer.0.output.dense': [8, 4]}
    """
    found = {name: width_of(model.get_submodule(name)) for name in declared_widths(model)}
    return {name: list(width) for name, width in sorted(found.items()) if width != declared_widths(model)[name]}


def declared_widths(model: nn.Module) -> dict[str, Width]:
    """Return the widths which the configuration of `model` says, for layers that `resize` or `keep` made smaller."""
    return dict(vars(model).get(_DECLARED, {}))


def forget_widths(model: nn.Module) -> None:
    """Note that the configuration of `model` says the widths that its layers have now."""
    vars(model).pop(_DECLARED, None)


def rename_widths(model: nn.Module, renamed: Callable[[str], str | None]) -> None:
    """Let the widths that `model` declares follow its layers to other names.

    Args:
        renamed: returns the new name of a layer, or None if it is gone.
    """
    declared = {renamed(name): width for name, width in declared_widths(model).items()}
    forget_widths(model)
    if kept := {name: width for name, width in declared.items() if name is not None}:
        vars(model)[_DECLARED] = kept


def resize(model: PreTrainedModel, widths: Mapping[str, Sequence[int]]) -> None:
    """Give layers of `model` fewer outputs and inputs, in place. Their weights are undefined afterwards.

    It is for a model whose weights are about to be loaded.

    Args:
        widths: the number of outputs and inputs, by the names of linear layers.

    Raises:
        ValueError: there is no linear layer of a name, a layer would become wider or empty, or layers of one module
            do not fit together.
    """
    if not widths:
        return
    layers = dict(named_modules(model))
    for name, (outputs, inputs) in widths.items():
        if name not in layers or kind(layers[name]) not in ("linear", "conv1d"):
            raise ValueError(
                f"`quantization_config.widths` names {name!r}, which is no linear layer of {type(model).__name__}. "
                "Load the checkpoint with the class it was saved from."
            )
        most = width_of(layers[name])
        if not (0 < outputs <= most[0] and 0 < inputs <= most[1]):
            raise ValueError(
                f"`quantization_config.widths` gives {name} {outputs} outputs and {inputs} inputs; a layer of this "
                f"model has at most {most[0]} and {most[1]}. Download or save the folder again."
            )
    with torch.no_grad():
        keep(model, {name: (range(outputs), range(inputs)) for name, (outputs, inputs) in widths.items()})


@torch.no_grad()
def keep(model: nn.Module, kept: Mapping[str, tuple[Sequence[int] | Tensor, Sequence[int] | Tensor]]) -> None:
    """Keep only some outputs and inputs of layers of `model`, in place, with new `Parameter` objects.

    Args:
        kept: the numbers of the outputs and of the inputs to keep, in ascending order, by the names of linear layers.

    Raises:
        ValueError: layers of one module do not fit together.

    Example:
        >>> from torch import nn
        >>> from hf_compress.models.widths import keep
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> keep(model, {"0": ([1], [0, 2])})
        >>> model[0]
        Linear(in_features=2, out_features=1, bias=True)
    """
    before = {name: width_of(model.get_submodule(name)) for name in kept}
    for name, (outputs, inputs) in kept.items():
        layer = model.get_submodule(name)
        _narrow(layer, kind(layer) or "linear", outputs, inputs)
    changed = {name: width for name, width in before.items() if width != width_of(model.get_submodule(name))}
    _recount(model, changed)
    vars(model)[_DECLARED] = changed | declared_widths(model)


def _narrow(
    layer: nn.Module, layer_kind: LayerKind, outputs: Sequence[int] | Tensor, inputs: Sequence[int] | Tensor
) -> None:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    chosen = [torch.as_tensor(numbers, dtype=torch.long, device=weight.device) for numbers in (outputs, inputs)]
    rows, columns = chosen[::-1] if layer_kind == "conv1d" else chosen
    layer.weight = nn.Parameter(weight[rows][:, columns].contiguous(), requires_grad=weight.requires_grad)
    bias = layer.bias
    if isinstance(bias, nn.Parameter):
        layer.bias = nn.Parameter(bias[chosen[0]].contiguous(), requires_grad=bias.requires_grad)
    names = ("nf", "nx") if layer_kind == "conv1d" else ("out_features", "in_features")
    for name, number in zip(names, width_of(layer), strict=True):
        setattr(layer, name, number)


def _recount(model: nn.Module, before: Mapping[str, Width]) -> None:
    """Let the attributes of modules that count outputs of the layers `before` follow the layers, in place."""
    changes: dict[str, dict[str, Width]] = {}
    for name, (outputs, _) in before.items():
        now, _ = width_of(model.get_submodule(name))
        if now != outputs:
            changes.setdefault(name.rpartition(".")[0], {})[name] = outputs, now
    for owner, layers in changes.items():
        module = model.get_submodule(owner)
        for attribute in _COUNTS:
            count = vars(module).get(attribute)
            if not isinstance(count, int) or isinstance(count, bool):
                continue
            counts = {count * now / outputs for outputs, now in layers.values()}
            if len(counts) > 1 or not (fitting := counts.pop()).is_integer():
                raise ValueError(
                    f"The widths of {', '.join(layers)} do not fit together, or do not fit `{attribute}` = {count} of "
                    f"{owner}: heads have another size. Save the model again."
                )
            setattr(module, attribute, int(fitting))
