"""The layerwise losses of one run: which layers they compare, the checks before training, and their values."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging

from hf_compress.distill.capturing import CAPTURED, Capture, Tap
from hf_compress.distill.layer_losses import PARTS, LayerLoss
from hf_compress.distill.pairing import Pairs
from hf_compress.distill.projecting import new_projections
from hf_compress.layers.attention import IMPLEMENTATION
from hf_compress.models.heads import Head, bare
from hf_compress.models.stacks import NoLayers, attention_dropout, layers_of, token_mask
from hf_compress.models.targets import PROJECTIONS, transformer

logger = logging.get_logger(__name__)

Ask = Callable[[dict[str, Tensor]], Any]
Couple = tuple[Tap, Tap]  # What of the student is compared with what of the teacher.
EAGER = "eager"


@dataclass(frozen=True)
class Term:
    """One layerwise loss of a run: its weight in the sum, and the numbers of the couples that it compares."""

    loss: LayerLoss
    weight: float
    couples: tuple[int, ...]


class Layerwise:
    """Compares layers of a student with layers of its teacher.

    Args:
        losses: the losses with their weights.
        pairs: the layers that are compared, as (student's, teacher's).
        seed: the seed of the projections.
    """

    def __init__(self, losses: list[tuple[LayerLoss, float]], pairs: Pairs, seed: int) -> None:
        self.couples, self.seed = list[Couple](), seed
        self.terms = [Term(loss, weight, self._numbered(couples_of(loss, pairs))) for loss, weight in losses]
        self.student = Capture([ours for ours, _ in self.couples], self._projected)
        self.teacher = Capture([theirs for _, theirs in self.couples])
        self.projections = nn.ModuleDict()
        self._widths: dict[int, tuple[int, int]] = {}
        self._undo = contextlib.ExitStack()

    def set_up(self, model: nn.Module, teacher: nn.Module, head: Head, run: Ask, ask: Ask) -> None:
        """Run both models once on an example batch, check that their layers can be compared, and make projections.

        Args:
            run: returns the student's outputs for a batch.
            ask: returns the teacher's outputs for a batch.

        Raises:
            ValueError: a loss cannot compare the two models.
        """
        for name in ("layerdrop", "encoder_layerdrop"):
            if rate := getattr(_inner(model).config, name, 0):
                raise ValueError(
                    f"`--distill_layer_loss` needs every layer at every step, but the student skips layers at random "
                    f'(`config.{name}` is {rate}). Set `model.config.{name} = 0`, or `"{name}": 0` in the config.json '
                    "that the script loads."
                )
        batch = head.example_batch(_inner(model))
        if self._reads_maps and any(_hides_maps(one) for one in (model, teacher)):
            logger.info(
                "`--distill_layer_loss attention` needs attention maps: while training lasts, both models use "
                f"`attn_implementation='{EAGER}'`."
            )
        values = self._probe(model, teacher, batch, run, ask)
        for number, (ours, theirs) in enumerate(values):
            self._check(number, ours, theirs)
            _mask(ours, model, batch)
        if self._widths and isinstance(model, PeftModel):
            pair = next(iter(self._widths.values()))
            raise ValueError(
                f"`--distill_layer_loss` needs trained projections, because the student's layers are {pair[0]} wide "
                f"and the teacher's {pair[1]}; checkpoints of a PEFT adapter would not hold them. Use `relations`, "
                "whose widths may differ, or train without an adapter."
            )
        like = next(parameter for parameter in _inner(model).parameters() if parameter.is_floating_point())
        self.projections = new_projections(self._widths, like, self.seed)

    @contextlib.contextmanager
    def attached(self, model: nn.Module, teacher: nn.Module) -> Iterator[None]:
        """Put hooks and projections on the models inside the context; a context inside another does nothing."""
        if self.student.installed:
            yield
            return
        try:
            self.attach(model, teacher)
            yield
        finally:
            self.detach()

    def attach(self, model: nn.Module, teacher: nn.Module) -> None:
        """Put hooks on both models, and the projections into the student."""
        undo = self._undo
        for one, capture in ((model, self.student), (teacher, self.teacher)):
            undo.callback(capture.remove)
            capture.install(one)
        if self._reads_maps:
            for one in (_inner(model), _inner(teacher)):
                if _hides_maps(one):
                    undo.callback(one.set_attn_implementation, one.config._attn_implementation)
                    one.set_attn_implementation(EAGER)
            # Maps after dropout are noise: zeros and too large numbers.
            for layer in layers_of(_inner(model)):
                for module, name in attention_dropout(layer):
                    undo.callback(setattr, module, name, getattr(module, name))
                    setattr(module, name, 0.0)
        if self.projections:
            student = _inner(model)
            student.add_module(PROJECTIONS, self.projections)
            undo.callback(delattr, student, PROJECTIONS)

    def detach(self) -> None:
        """Leave both models as they were."""
        self._undo.close()

    def losses(
        self,
        student: Any,
        teacher: Any,
        model: nn.Module,
        inputs: Mapping[str, Any],
        mean: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Return the value of each loss by its name in the logs: a mean over the rows that count.

        Args:
            student: the student's outputs for the batch `inputs`.
            teacher: the teacher's outputs for it.
            mean: of values of shape (rows,).

        Raises:
            ValueError: the outputs are not the student's own, or a loss trains nothing.
        """
        if CAPTURED not in student:
            raise ValueError(
                "`--distill_layer_loss` needs the outputs of the model itself. Let `compute_loss` return the model's "
                "own outputs."
            )
        ours, theirs = student[CAPTURED], teacher[CAPTURED]
        masks = [_mask(value, model, inputs) for value in ours]
        device, found = masks[0].device, dict[str, Tensor]()
        with torch.autocast(device.type, enabled=False):
            for term in self.terms:
                _check_gradients(term.loss, [ours[number] for number in term.couples])
                values = [
                    term.loss.function(_wide(ours[number], device), _wide(theirs[number], device), masks[number])
                    for number in term.couples
                ]
                found[term.loss.term] = mean(torch.stack(values).mean(0))
        return found

    @property
    def _reads_maps(self) -> bool:
        """Whether a loss compares attention maps."""
        return any(part == "attention" for part, _ in self.student.taps)

    def _numbered(self, couples: list[Couple]) -> tuple[int, ...]:
        """Return the numbers of the couples. Losses share what they both compare, and its projection."""
        self.couples += [couple for couple in couples if couple not in self.couples]
        return tuple(self.couples.index(couple) for couple in couples)

    def _projected(self, values: list[Any]) -> list[Any]:
        """Return what was kept of the student, projected to the teacher's width where it differs."""
        return [
            self.projections[str(number)](value) if str(number) in self.projections else value
            for number, value in enumerate(values)
        ]

    @torch.no_grad()
    def _probe(
        self, model: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], run: Ask, ask: Ask
    ) -> list[tuple[Any, Any]]:
        """Return what each couple compares for a batch, as (student's, teacher's)."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with self.attached(model, teacher), torch.random.fork_rng(devices=[]):
                with self.student.active():
                    ours = run(_on(batch, model))[CAPTURED]
                theirs = ask(_on(batch, teacher))[CAPTURED]
        except NoLayers as error:
            raise ValueError(f"`--distill_layer_loss` cannot be used: {error}. Use another loss.") from error
        finally:
            for module, training in modes:
                module.training = training
        return list(zip(ours, theirs, strict=True))

    def _check(self, number: int, ours: Any, theirs: Any) -> None:
        """Check that a couple can be compared, and note the widths that need a projection."""
        couple = self.couples[number]
        for (part, layer), value, who in zip(couple, (ours, theirs), ("student", "teacher"), strict=True):
            dims = 4 if part == "attention" else 3
            tensors = value if isinstance(value, tuple) else (value,)
            if any(not isinstance(tensor, Tensor) or tensor.ndim != dims for tensor in tensors):
                raise ValueError(
                    f"`--distill_layer_loss` needs {PARTS[part]}, which layer {layer} of the {who} does not give, or "
                    "not for each token. Use another loss."
                )
        first, second = (value if isinstance(value, Tensor) else value[0] for value in (ours, theirs))
        if first.shape[-2] != second.shape[-2]:
            raise ValueError(
                f"`--distill_layer_loss` compares tokens one by one, but for the same input the student has "
                f"{first.shape[-2]} and the teacher {second.shape[-2]}. Leave the option out."
            )
        if couple[0][0] in ("hidden", "embeddings") and first.shape[-1] != second.shape[-1]:
            self._widths[number] = (first.shape[-1], second.shape[-1])


def couples_of(loss: LayerLoss, pairs: Pairs) -> list[Couple]:
    """Return what a loss compares, given the pairs of layers."""
    if loss.reads == "embeddings":
        return [(("embeddings", 0), ("embeddings", 0))]
    return [
        ((loss.reads, ours), (loss.reads, theirs))
        for ours, theirs in (pairs[-1:] if loss.reads == "relations" else pairs)
    ]


def _hides_maps(model: nn.Module) -> bool:
    """Return whether the attention of a model computes no maps, as PyTorch's fast kernels do."""
    return _inner(model).config._attn_implementation not in (EAGER, IMPLEMENTATION)


def _inner(model: nn.Module) -> Any:
    """Return the Transformers model that `model` is, wraps or contains, without an adapter."""
    return bare(transformer(bare(model)))


def _on(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {name: value.to(_inner(model).device) for name, value in batch.items()}


def _mask(value: Any, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return which tokens of a layer's value are not padding, of shape (rows, tokens).

    Raises:
        ValueError: that is unknown.
    """
    tensor = value if isinstance(value, Tensor) else value[0]
    mask = token_mask(_inner(model), inputs, len(tensor), tensor.shape[-2])
    if mask is None:
        raise ValueError(
            f"`--distill_layer_loss` cannot tell which of the {tensor.shape[-2]} places in a layer of "
            f"{type(_inner(model)).__name__} are padding: `attention_mask` has the shape "
            f"{tuple(inputs['attention_mask'].shape)}. Give a mask of rows and tokens, or leave the option out."
        )
    return mask.to(tensor.device)


def _wide(value: Any, device: torch.device) -> Any:
    """Return tensors in float32 or wider, on the device."""
    if isinstance(value, tuple):
        return tuple(_wide(tensor, device) for tensor in value)
    return value.to(device, torch.promote_types(value.dtype, torch.float32))


def _check_gradients(loss: LayerLoss, values: list[Any]) -> None:
    tensors = [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]
    if torch.is_grad_enabled() and not any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"`--distill_layer_loss {loss.name}` trains nothing: no weight that can change has an effect on what it "
            "compares. The layers are frozen, or `activation_checkpointing_kwargs` has `use_reentrant=True`: set it "
            "to False, or leave this loss out."
        )
