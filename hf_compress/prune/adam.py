"""The criterion `adam`: the loss that a weight's removal costs, by the second moment that Adam keeps anyway."""

import torch
from torch import Tensor

from hf_compress.prune.criterion import Criterion, Evidence

MOMENT = "exp_avg_sq"


def moment_scores(evidence: Evidence) -> Tensor:
    """Return w^2 x v / (1 - beta2^t): twice the growth of the loss if a weight w is removed, to second order.

    Adam's second moment v, corrected for its start at zero, stands for the diagonal of the Fisher information (Li et
    al., 2025), which stands for the second derivatives of the loss (LeCun et al., 1989). A layer that never had a
    gradient scores zero.

    Example:
        >>> import torch
        >>> from hf_compress.prune import CRITERIA, Evidence
        >>> state = {"exp_avg_sq": torch.tensor([0.4, 0.1]), "step": torch.tensor(1.0)}
        >>> evidence = Evidence(torch.tensor([1.0, 3.0]), optimizer=state, settings={"betas": (0.9, 0.9)})
        >>> CRITERIA["adam"].scores(evidence)
        tensor([4., 9.])
    """
    weight = _wide(evidence.weight)
    if not evidence.optimizer:
        return torch.zeros_like(weight)
    correction = 1 - float(evidence.settings["betas"][1]) ** float(evidence.optimizer["step"])
    return weight.square() * (_wide(evidence.optimizer[MOMENT]) / correction)


def unfit(evidence: Evidence) -> str | None:
    """Return why the optimizer has no second moment of the weight, or None."""
    if len(evidence.settings.get("betas", ())) < 2:
        return "keeps no average of squared gradients, as Adam does under `betas`"
    if not evidence.optimizer:
        return None  # Before the first step.
    moment = evidence.optimizer.get(MOMENT)
    # Moments in 8 bits, of a Tensor's subclass or with scales of their own, cannot be read as numbers.
    plain = type(moment) is Tensor and moment.is_floating_point() and moment.shape == evidence.weight.shape
    if not plain or "step" not in evidence.optimizer:
        return f"keeps {', '.join(f'`{name}`' for name in evidence.optimizer)}, but no plain `{MOMENT}` and `step`"
    return None


def _wide(values: Tensor) -> Tensor:
    """Return values of 16 bits in 32: their squares would underflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


ADAM = Criterion(
    name="adam",
    scores=moment_scores,
    help="the smallest products of squared weight and Adam's second moment (needs an Adam or AdamW)",
    card="weights with the smallest products of their square and Adam's second moment",
    citation="""@inproceedings{li-etal-2025-fishers,
  title     = {Fishers for Free? Approximating the {Fisher} Information Matrix by Recycling the Squared Gradient Accumulator},
  author    = {Li, YuXin and Dangel, Felix and Tam, Derek and Raffel, Colin},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2507.18807}
}

@inproceedings{lecun-etal-1989-optimal,
  title     = {Optimal Brain Damage},
  author    = {LeCun, Yann and Denker, John S. and Solla, Sara A.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {1989}
}""",  # noqa: E501
    needs_optimizer=True,
    unfit=unfit,
)
