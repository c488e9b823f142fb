"""Round a dense model once, without training, in the ways that `rate.py` and `zeros.py` compare; not a program.

A way says how steps are chosen, and what else is done with them. Every way gets one constant, which is fitted to the
bytes of the packed file. The file is really written, and scores are those of the reloaded file.
"""

import copy
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import hf_compress as hfc
from hf_compress.checkpoint import save_compressed
from hf_compress.layers import SCHEMES, quantize_layers
from hf_compress.models import prunable, quantizable
from hf_compress.rate import Rounded, Rounding, Statistics, fit, gather, token_factors

SCHEME = "int8-weight"  # Integers of a byte and one scale per row; inputs of layers stay in floating point.
INT8_ROWS = 1 / 127  # The constant of the way `row maximum` that gives the scheme's own scales.
RESAMPLES = 1000


@dataclass(frozen=True)
class Way:
    """How the numbers of a file are chosen.

    Attributes:
        step: `sensitivity`, in proportion to 1 / sqrt(sensitivity); `deviation`, to the standard deviation of the
            tensor, which is the same relative error for all; or `row maximum`, to the largest weight of the row.
        feedback: whether linear layers are rounded with error feedback.
        tokens: whether rare tokens get coarser steps.
        positions: whether rare rows of the other embeddings (positions, token types) do.
        zeros: share of the linear layers' weights that are zero, the smallest of each layer.
    """

    step: str = "sensitivity"
    feedback: bool = True
    tokens: bool = True
    positions: bool = True
    zeros: float = 0.0


class Shot:
    """A dense model and the statistics of its weights, ready to be rounded.

    Args:
        dense: the model.
        batches: inputs of about 512 rows.
        counts: how often each token occurs in the training texts.
    """

    def __init__(self, dense: PreTrainedModel, batches: Iterable[Mapping[str, Any]], counts: Tensor) -> None:
        self.dense = dense
        targets = quantizable(dense)
        self.statistics = gather(dense, targets, batches)
        called = self.statistics.moments | self.statistics.uses
        self.targets = list({id(one.weight): one for one in targets if one.name in called}.values())
        self.weights = {one.name: one.weight.detach() for one in self.targets}
        words = dense.get_input_embeddings().weight
        self.words = next(one.name for one in self.targets if one.weight is words)
        self.factors = {
            name: token_factors(counts if name == self.words else uses)
            for name, uses in self.statistics.uses.items()
            if name in self.weights
        }
        with tempfile.TemporaryDirectory() as folder:
            some = self.at(Way(feedback=False), 1.0)
            # Of everything else: biases, layer norms and names.
            self.other_bytes = self.write(some, Path(folder, "file")) - sum(one.bytes for one in some.values())

    def rounding(self, way: Way) -> Rounding:
        """Return the weights, ready to be rounded in a way with any constant."""
        names, factors = list(self.weights), {}
        if way.step == "sensitivity":
            sensitivity = self.statistics.sensitivity
        elif way.step == "deviation":  # The step is the constant over the root of this.
            sensitivity = {name: 1 / float(weight.var()) for name, weight in self.weights.items()}
        else:
            sensitivity = dict.fromkeys(names, 1.0)
            factors = {name: weight.abs().amax(1, keepdim=True) for name, weight in self.weights.items()}
        for name, rows in self.factors.items():
            if way.tokens if name == self.words else way.positions:
                factors[name] = factors.get(name, 1.0) * rows
        kept = {}
        for target in prunable(self.dense) if way.zeros else []:
            if target.name in self.weights:
                magnitude = target.weight.detach().abs()
                kept[target.name] = (
                    magnitude > magnitude.flatten().kthvalue(round(way.zeros * magnitude.numel())).values
                )
        known = Statistics(dict(sensitivity), self.statistics.moments, self.statistics.uses)
        return Rounding(self.weights, known, factors, kept, way.feedback)

    def at(self, way: Way, constant: float) -> dict[str, Rounded]:
        """Return the weights rounded in a way with this constant of all steps."""
        return self.rounding(way).at(constant)

    def fitted(self, way: Way, limit: float) -> dict[str, Rounded]:
        """Return the weights rounded in a way such that the file takes at most `limit` bytes, and nearly as many."""
        return fit(self.rounding(way), limit - self.other_bytes).weights

    def write(self, weights: Mapping[str, Rounded], folder: Path) -> int:
        """Write the compressed model with these rounded weights, and return the bytes of the file."""
        model = copy.deepcopy(self.dense)
        quantize_layers(model, SCHEMES[SCHEME].grids, steps=True)
        for name, found in weights.items():
            layer = model.get_submodule(name)
            layer.weight.data, layer.quantizing, layer.rounded = found.rows, True, torch.float32
            layer.keep_step(found.step)
        for layer in (model.get_submodule(target.name) for target in quantizable(model)):
            layer.quantizing = True
        save_compressed(model, folder, hfc.Recipe(quantization=hfc.QuantizationArguments(quant_scheme=SCHEME)))
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def interval(values: np.ndarray, form: str = ".1f") -> str:
    """Return the mean of values of independent rows, with its 95 % interval over resamples of the rows."""
    generator = np.random.default_rng(0)
    drawn = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"
