"""The criterion `platon`: how much the loss depends on a weight, times how uncertain that is."""

import torch
from torch import Tensor

from hf_compress.prune.criterion import Criterion, Evidence

WINDOW = 10  # Optimizer steps over which sensitivities are averaged.
# The shares of the past in the averages over windows: of the sensitivity, and of its distance to that average.
PAST, PAST_UNCERTAINTY = 0.85, 0.95


def observe(evidence: Evidence) -> None:
    """Add |w x g| of a step to the window; at its end, update the averages of sensitivity and uncertainty."""
    weight, memory = evidence.weight, evidence.memory
    assert evidence.gradient is not None
    wide = torch.promote_types(weight.dtype, torch.float32)  # Products of 16 bits would underflow.
    window = memory.setdefault("window", torch.zeros_like(weight, dtype=wide))
    window.add_((weight.to(wide) * evidence.gradient).abs_())
    if evidence.step % WINDOW:
        return
    sensitivity = window.div_(WINDOW)
    mean = memory.setdefault("mean", torch.zeros_like(window))
    mean.lerp_(sensitivity, 1 - PAST)
    uncertainty = memory.setdefault("uncertainty", torch.zeros_like(window))
    uncertainty.lerp_(sensitivity.sub_(mean).abs_(), 1 - PAST_UNCERTAINTY)
    window.zero_()


def upper_bounds(evidence: Evidence) -> Tensor:
    """Return mean sensitivity x uncertainty; before the end of the first window, the sensitivity so far.

    Weights that seem to matter little, but vary much, are kept (Zhang et al., 2022).
    """
    memory = evidence.memory
    return memory["mean"] * memory["uncertainty"] if "mean" in memory else memory["window"]


PLATON = Criterion(
    name="platon",
    scores=upper_bounds,
    help="the smallest products of sensitivity, the mean |weight x gradient|, and its uncertainty (keeps 12 bytes per "
    "weight, in checkpoints too)",
    card="weights with the smallest products of sensitivity and its uncertainty (PLATON)",
    citation="""@inproceedings{zhang-etal-2022-platon,
  title     = {{PLATON}: Pruning Large Transformer Models with Upper Confidence Bound of Weight Importance},
  author    = {Zhang, Qingru and Zuo, Simiao and Liang, Chen and Bukharin, Alexander and He, Pengcheng and Chen, Weizhu and Zhao, Tuo},
  booktitle = {International Conference on Machine Learning},
  year      = {2022},
  url       = {https://arxiv.org/abs/2206.12562}
}""",  # noqa: E501
    needs_gradients=True,
    observe=observe,
)
