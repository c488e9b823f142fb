"""The architectures of the table in `docs/architectures.md`: a tiny configuration and a head for each.

To add one, add its `Family` to `FAMILIES` and run `python -m tests.architectures NAME`.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from tests.invariants.test_images_and_sounds import CONFIGS

VOCABULARY = 48
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**TOKENS, **BODY, "max_position_embeddings": 32}
SHARED = {"num_key_value_heads": 2}  # Two heads of queries share one of keys.
BERT_DECODES = {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 4}
BART = {
    **TOKENS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 3,
}
T5 = {
    **TOKENS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 1,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}
KINDS = {
    "encoder": AutoModelForSequenceClassification,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "image": AutoModelForImageClassification,
    "sound": AutoModelForAudioClassification,
}


@dataclass(frozen=True)
class Family:
    """An architecture with a head.

    Args:
        name: the `model_type` of its configuration.
        title: its name in the table.
        kind: a key of `KINDS`, which names the head.
        settings: of the tiny configuration. Those of images and sounds are where they are tested.
        known: published models of this architecture, as the table says them.
    """

    name: str
    title: str
    kind: str = "encoder"
    settings: dict[str, Any] = field(default_factory=lambda: dict(TEXT))
    known: str = ""

    @property
    def auto_class(self) -> Any:
        return KINDS[self.kind]

    def config(self) -> PreTrainedConfig:
        if self.kind in ("image", "sound"):
            return CONFIGS[self.name]()
        return AutoConfig.for_model(self.name, **self.settings)


def encoder(name: str, title: str, known: str = "", **changes: Any) -> Family:
    return Family(name, title, "encoder", {**TEXT, **changes}, known)


def decoder(name: str, title: str, known: str = "", **changes: Any) -> Family:
    return Family(name, title, "decoder", {**TEXT, **changes}, known)


FAMILIES = [
    encoder("bert", "BERT", "MiniLM, BGE, GTE, E5"),
    encoder("roberta", "RoBERTa", type_vocab_size=1),
    encoder("xlm-roberta", "XLM-RoBERTa", "multilingual E5, BGE-M3", type_vocab_size=1),
    encoder("camembert", "CamemBERT", type_vocab_size=1),
    Family(
        "distilbert",
        "DistilBERT",
        settings={**TOKENS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 32},
    ),
    encoder("electra", "ELECTRA", embedding_size=16),
    encoder("albert", "ALBERT", embedding_size=16),
    encoder("mpnet", "MPNet", "all-mpnet-base"),
    encoder("deberta", "DeBERTa", **RELATIVE),
    encoder(
        "deberta-v2",
        "DeBERTa-v2 and v3",
        position_buckets=4,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        **RELATIVE,
    ),
    encoder("modernbert", "ModernBERT", "gte-modernbert, Ettin", **BERT_DECODES),
    encoder("eurobert", "EuroBERT", **SHARED),
    encoder("nomic_bert", "NomicBERT", "nomic-embed-text"),
    encoder("jina_embeddings_v3", "Jina embeddings v3"),
    encoder("roformer", "RoFormer", embedding_size=32),
    encoder("esm", "ESM", position_embedding_type="rotary", mask_token_id=4),
    Family("xlnet", "XLNet", settings={**TOKENS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    Family(
        "gpt2",
        "GPT-2",
        "decoder",
        {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        "DistilGPT2",
    ),
    decoder("llama", "Llama", "SmolLM, TinyLlama", **SHARED, tie_word_embeddings=True),
    decoder("smollm3", "SmolLM3", **SHARED),
    decoder("qwen2", "Qwen2", "Qwen2.5", **SHARED, tie_word_embeddings=True),
    decoder("qwen3", "Qwen3", "Qwen3-Embedding", **SHARED, head_dim=8, tie_word_embeddings=True),
    decoder("gemma3_text", "Gemma 3", **SHARED, head_dim=8),
    decoder("modernbert-decoder", "ModernBERT decoder", "Ettin decoders", **BERT_DECODES),
    decoder("mistral", "Mistral", **SHARED, head_dim=8),
    decoder("phi3", "Phi-3", **SHARED),
    decoder("olmo2", "OLMo 2", **SHARED),
    decoder("gpt_neox", "GPT-NeoX", "Pythia"),
    Family("t5", "T5", "encoder-decoder", T5, "Flan-T5"),
    Family("bart", "BART", "encoder-decoder", BART),
    Family("marian", "Marian", "encoder-decoder", BART, "opus-mt"),
    *(
        Family(name, title, "image")
        for name, title in (
            ("vit", "ViT"),
            ("deit", "DeiT"),
            ("dinov2", "DINOv2"),
            ("swin", "Swin"),
            ("convnext", "ConvNeXt"),
            ("clip", "CLIP, image tower"),
            ("siglip", "SigLIP, image tower"),
        )
    ),
    *(
        Family(name, title, "sound")
        for name, title in (("wav2vec2", "Wav2Vec2"), ("hubert", "HuBERT"), ("whisper", "Whisper, encoder"))
    ),
]
