"""The names of weights in training checkpoints: the model's own, by which Trainer loads them."""

from torch import nn

from hf_compress.models.targets import transformer, unadapted

# Where Transformers keeps what `save_pretrained` undoes, and where we keep that while a model is trained.
_CONVERSIONS, _BEFORE = "_weight_conversions", "_hf_compress_conversions"


def save_own_names(model: nn.Module) -> None:
    """Let `save_pretrained` write the weights as the model has them, in place, until `save_hub_names`.

    Transformers writes the weights of some models (NomicBERT, GTE, mixtures of experts) under other names or fused, as
    they are on the Hub. Trainer loads a training checkpoint by the model's own names and passes over all others: a
    resumed run would go on from random weights. `from_pretrained` reads both.

    Args:
        model: a Transformers model, or a module around one.

    Example:
        >>> from hf_compress.models.naming import save_hub_names, save_own_names
        >>> from transformers import NomicBertConfig, NomicBertModel
        >>> from transformers.core_model_loading import revert_weight_conversion
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = NomicBertModel(NomicBertConfig(vocab_size=9, **sizes))
        >>> state = {"embeddings.LayerNorm.bias": model.embeddings.LayerNorm.bias}
        >>> list(revert_weight_conversion(model, state))
        ['emb_ln.bias']
        >>> save_own_names(model)
        >>> list(revert_weight_conversion(model, state))
        ['embeddings.LayerNorm.bias']
        >>> save_hub_names(model)
    """
    inner = unadapted(transformer(model))
    vars(inner).setdefault(_BEFORE, getattr(inner, _CONVERSIONS, None))
    setattr(inner, _CONVERSIONS, [])


def save_hub_names(model: nn.Module) -> None:
    """Let `save_pretrained` write the weights as before `save_own_names`, in place."""
    inner = unadapted(transformer(model))
    if _BEFORE in vars(inner):
        setattr(inner, _CONVERSIONS, vars(inner).pop(_BEFORE))
