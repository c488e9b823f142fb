"""The registry of layerwise losses: distances between what layers of a student and of a teacher compute.

To add a loss, write its function and its entry in `LAYER_LOSSES`. The flag's help, the checks before training, the
name in the logs and the model card follow from the entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# What a loss may read of a layer.
PARTS: dict[str, str] = {
    "hidden": "the output of a layer",
    "embeddings": "the input of the first layer",
    "attention": "the attention map of a layer",
    "relations": "queries, keys and values of the last layer",
}
# So many heads at most are the relations of queries, keys and values split into (MiniLMv2 uses 48).
RELATION_HEADS = 48
_TINY = 1e-12


@dataclass(frozen=True)
class LayerLoss:
    """A distillation loss on layers, with the words that the flag's help and the card need.

    Args:
        name: the name in `--distill_layer_loss NAME=WEIGHT`.
        function: the distance. It takes the student's tensor of a layer, the teacher's, and the mask of the tokens
            that are not padding, of shape (rows, tokens), and returns one value per row. The tensors are what `reads`
            names: of shape (rows, tokens, width) for "hidden" and "embeddings", (rows, heads, queries, keys) for
            "attention", and (queries, keys, values), each of shape (rows, tokens, width), for "relations".
        reads: a key of `PARTS`: "hidden" and "attention" of every pair of layers, "embeddings" once, "relations" of
            the last pair.
        help: a short phrase for the flag's help.
        card: a noun phrase for "The loss also has 1 x <card>".
        citation: a BibTeX entry, or "".

    Example:
        >>> import torch
        >>> from hf_compress.distill import LAYER_LOSSES, LayerLoss
        >>> def first(student, teacher, mask):
        ...     return (student[:, 0] - teacher[:, 0]).square().mean(-1)
        >>> words = dict(help="first tokens", card="the distance of first tokens", citation="")
        >>> pkd = LayerLoss("first", first, "hidden", **words)
        >>> pkd.function(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
        tensor([1., 1.])
        >>> LAYER_LOSSES["first"] = pkd  # From here on, `--distill_layer_loss first=1` is legal.
        >>> del LAYER_LOSSES["first"]
    """

    name: str
    function: Callable[..., Tensor]
    reads: str
    help: str
    card: str
    citation: str

    def __post_init__(self) -> None:
        if self.reads not in PARTS:
            raise ValueError(
                f"`reads` of the layer loss {self.name!r} must be one of {', '.join(map(repr, PARTS))}, got "
                f"{self.reads!r}. Choose one of them."
            )

    @property
    def term(self) -> str:
        """The name in the logs."""
        return f"{self.name}_loss"


def hidden(
    student: Float[Tensor, "rows tokens width"],
    teacher: Float[Tensor, "rows tokens width"],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows"]:
    """Return the squared difference over the teacher's mean square, both means over a row's tokens and their width.

    A student that is zero everywhere has a loss of 1, at any scale of the teacher (SquareHead, Kurtic et al., 2023).
    """
    padding = ~mask.unsqueeze(-1)
    difference = (student - teacher).masked_fill(padding, 0.0).square().sum((1, 2))
    scale = teacher.masked_fill(padding, 0.0).square().sum((1, 2))
    return difference / scale.clamp(min=_TINY)


def hidden_cosine(
    student: Float[Tensor, "rows tokens width"],
    teacher: Float[Tensor, "rows tokens width"],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows"]:
    """Return 1 minus the cosine of the two vectors of a token, as the mean over a row's tokens (Sanh et al., 2019)."""
    return _over_tokens(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


def attention(
    student: Float[Tensor, "rows student_heads tokens tokens"],
    teacher: Float[Tensor, "rows teacher_heads tokens tokens"],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows"]:
    """Return KL(teacher || student) of the attention of a token, as the mean over heads and a row's tokens, in nats.

    If the numbers of heads differ, the maps are first averaged over heads (MiniLM, Wang et al., 2020).
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    log_ratio = teacher.clamp(min=_TINY).log() - student.clamp(min=_TINY).log()
    # The two last terms add up to 0, except for rounded maps.
    divergence = (teacher * log_ratio - teacher + student).masked_fill(~mask[:, None, None, :], 0.0)
    return _over_tokens(divergence.sum(-1).mean(1), mask)


def relations(
    student: tuple[Float[Tensor, "rows tokens _"], Float[Tensor, "rows tokens _"], Float[Tensor, "rows tokens _"]],
    teacher: tuple[Float[Tensor, "rows tokens _"], Float[Tensor, "rows tokens _"], Float[Tensor, "rows tokens _"]],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows"]:
    """Return the mean over queries, keys and values of the KL(teacher || student) of their relations, in nats.

    A relation is softmax(A A' / sqrt d) over the tokens of a row, for each of `relation_heads` slices A of width d
    (MiniLMv2, Wang et al., 2021, eq. 4 to 7). The means are over relation heads and a row's tokens.
    """
    heads = relation_heads(*(part.shape[-1] for part in (*student, *teacher)))
    values = [
        _over_tokens(
            F.kl_div(_relation(ours, heads, mask), _relation(theirs, heads, mask), reduction="none", log_target=True)
            .masked_fill(~mask[:, None, None, :], 0.0)
            .sum(-1)
            .mean(1),
            mask,
        )
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(values).mean(0)


def relation_heads(*widths: int) -> int:
    """Return the largest number of slices, up to `RELATION_HEADS`, that divides all the widths.

    Example:
        >>> from hf_compress.distill.layer_losses import relation_heads
        >>> relation_heads(384, 768), relation_heads(312, 768)
        (48, 24)
    """
    common = math.gcd(*widths)
    return max(number for number in range(1, RELATION_HEADS + 1) if common % number == 0)


def _relation(
    vectors: Float[Tensor, "rows tokens width"], heads: int, mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows heads tokens tokens"]:
    """Return the logarithms of the relations of a row's tokens; padding has almost none."""
    parts = vectors.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / math.sqrt(parts.shape[-1])
    return scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min / 2).log_softmax(-1)


def _over_tokens(values: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows"]:
    """Return the mean over a row's tokens that are not padding; 0 for a row of padding."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


_SQUAREHEAD = """@article{kurtic2023sparse,
  title = {Sparse Fine-tuning for Inference Acceleration of Large Language Models},
  author = {Kurtic, Eldar and Kuznedelev, Denis and Frantar, Elias and Goin, Michael and Alistarh, Dan},
  journal = {arXiv preprint arXiv:2310.06927},
  year = {2023}
}"""
_DISTILBERT = """@article{sanh2019distilbert,
  title = {DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter},
  author = {Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal = {arXiv preprint arXiv:1910.01108},
  year = {2019}
}"""
_MINILM = """@inproceedings{wang2020minilm,
  title = {MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers},
  author = {Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}
}"""
TINYBERT = """@inproceedings{jiao2020tinybert,
  title = {TinyBERT: Distilling BERT for Natural Language Understanding},
  author = {Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and Li, Linlin and Wang, Fang
            and Liu, Qun},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2020},
  year = {2020}
}"""
_MINILMV2 = """@inproceedings{wang2021minilmv2,
  title = {MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers},
  author = {Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu},
  booktitle = {Findings of the Association for Computational Linguistics: ACL-IJCNLP 2021},
  year = {2021}
}"""

LAYER_LOSSES: dict[str, LayerLoss] = {
    loss.name: loss
    for loss in (
        LayerLoss(
            name="hidden",
            function=hidden,
            reads="hidden",
            help="squared difference of layer outputs over the teacher's mean square",
            card="the squared difference of layer outputs, relative to the teacher's mean square",
            citation=_SQUAREHEAD,
        ),
        LayerLoss(
            name="hidden_cosine",
            function=hidden_cosine,
            reads="hidden",
            help="1 minus the cosine of layer outputs",
            card="1 minus the cosine of layer outputs",
            citation=_DISTILBERT,
        ),
        LayerLoss(
            name="embeddings",
            function=hidden,
            reads="embeddings",
            help="as `hidden`, of the input of the first layer",
            card="the squared difference of the first layer's input, relative to the teacher's mean square",
            citation=TINYBERT,
        ),
        LayerLoss(
            name="attention",
            function=attention,
            reads="attention",
            help="divergence of the attention maps",
            card="the Kullback-Leibler divergence of attention maps",
            citation=_MINILM,
        ),
        LayerLoss(
            name="relations",
            function=relations,
            reads="relations",
            help="divergence of the relations among queries, keys and values of the last pair of layers",
            card="the Kullback-Leibler divergence of the relations among queries, keys and values of one layer",
            citation=_MINILMV2,
        ),
    )
}
