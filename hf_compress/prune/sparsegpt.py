"""The criterion `sparsegpt`: what the outputs of a layer lose if a weight goes and the others make up for it."""

from torch import Tensor

from hf_compress.prune.criterion import Criterion, Evidence


def removal_errors(evidence: Evidence) -> Tensor:
    """Return w^2 x curvature: the growth of the squared error of the outputs on the inputs seen.

    Example:
        >>> import torch
        >>> from hf_compress.prune import CRITERIA, Evidence
        >>> evidence = Evidence(torch.tensor([[1.0, -3.0]]), curvature=torch.tensor([2.0, 1.0]))
        >>> CRITERIA["sparsegpt"].scores(evidence)
        tensor([[2., 9.]])
    """
    assert evidence.curvature is not None
    return evidence.weight.square() * evidence.curvature


SPARSEGPT = Criterion(
    name="sparsegpt",
    scores=removal_errors,
    help="the smallest errors of the layer's outputs; the weights that stay are corrected at each choice, which takes "
    "as long as several training steps (raise `--prune_every`)",
    card="weights that change the outputs of their layer least (SparseGPT; the others were corrected for them)",
    citation="""@inproceedings{frantar-alistarh-2023-sparsegpt,
  title     = {{SparseGPT}: Massive Language Models Can Be Accurately Pruned in One-Shot},
  author    = {Frantar, Elias and Alistarh, Dan},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  url       = {https://arxiv.org/abs/2301.00774}
}""",
    corrects=True,
)
