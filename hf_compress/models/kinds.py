"""The kinds of heads: one descriptor each, with the tasks, classes and outputs of Transformers."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

# Their forward compares the logits with the labels as they are, and leaves the shift by one token to the caller, or
# takes no labels at all. All other causal language models use `loss_function`, which shifts. `tests/models` compares
# this list with the installed Transformers.
UNSHIFTED = {
    "BartForCausalLM",
    "BigBirdPegasusForCausalLM",
    "BlenderbotForCausalLM",
    "BlenderbotSmallForCausalLM",
    "CpmAntForCausalLM",
    "Gemma4AssistantForCausalLM",
    "Gemma4UnifiedAssistantForCausalLM",
    "MBartForCausalLM",
    "MarianForCausalLM",
    "MusicgenForCausalLM",
    "MusicgenMelodyForCausalLM",
    "MvpForCausalLM",
    "PLBartForCausalLM",
    "PegasusForCausalLM",
    "ProphetNetForCausalLM",
    "TrOCRForCausalLM",
    "WhisperForCausalLM",
    "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
}

# The classes that `AutoModel` makes; they have no head.
HEADLESS = {
    name
    for names in modeling_auto.MODEL_MAPPING_NAMES.values()
    for name in ([names] if isinstance(names, str) else names)
}


@dataclass(frozen=True)
class HeadKind:
    """One kind of head: what all models with it have in common.

    Args:
        task: the task in words, for messages and the card.
        pipeline_tag: the Hub's name of the task.
        auto_class: the `AutoModelFor...` class that loads such models.
        mapping: the name of the table in `modeling_auto` that lists their classes.
        outputs: the names of the logits among the model's outputs.
        position: what one prediction is made for: a row of the batch, a token, or the token that follows.
        target: the argument with the labels that positions are counted by.
        has_classes: whether `config.num_labels` says how many classes there are.
        has_problem: whether `config.problem_type` may turn classification into regression or independent labels.
        predicts_tokens: whether the classes are the tokens of the vocabulary.
        decodes: whether the model needs `decoder_input_ids`.
        has_choices: whether a row holds several texts to choose from.

    Example:
        >>> from hf_compress.models import HEAD_KINDS
        >>> kind = HEAD_KINDS["token"]
        >>> kind.task, kind.pipeline_tag, "BertForTokenClassification" in kind.architectures()
        ('token classification', 'token-classification', True)
    """

    task: str
    pipeline_tag: str
    auto_class: Any
    mapping: str
    outputs: tuple[str, ...] = ("logits",)
    position: Literal["row", "token", "next token"] = "row"
    target: str = "labels"
    has_classes: bool = False
    has_problem: bool = False
    predicts_tokens: bool = False
    decodes: bool = False
    has_choices: bool = False

    def architectures(self) -> set[str]:
        """Return the names of the model classes with this kind of head."""
        names = getattr(modeling_auto, f"MODEL_FOR_{self.mapping}_MAPPING_NAMES").values()
        return {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}


# In this order: the seq2seq class of Bart and its relatives is also among the masked language models.
HEAD_KINDS: dict[str, HeadKind] = {
    "seq2seq": HeadKind(
        task="sequence-to-sequence language modelling",
        pipeline_tag="text2text-generation",
        auto_class=AutoModelForSeq2SeqLM,
        mapping="SEQ_TO_SEQ_CAUSAL_LM",
        position="token",
        predicts_tokens=True,
        decodes=True,
    ),
    "masked": HeadKind(
        task="masked language modelling",
        pipeline_tag="fill-mask",
        auto_class=AutoModelForMaskedLM,
        mapping="MASKED_LM",
        position="token",
        predicts_tokens=True,
    ),
    "causal": HeadKind(
        task="causal language modelling",
        pipeline_tag="text-generation",
        auto_class=AutoModelForCausalLM,
        mapping="CAUSAL_LM",
        position="next token",
        predicts_tokens=True,
    ),
    "sequence": HeadKind(
        task="sequence classification",
        pipeline_tag="text-classification",
        auto_class=AutoModelForSequenceClassification,
        mapping="SEQUENCE_CLASSIFICATION",
        has_classes=True,
        has_problem=True,
    ),
    "token": HeadKind(
        task="token classification",
        pipeline_tag="token-classification",
        auto_class=AutoModelForTokenClassification,
        mapping="TOKEN_CLASSIFICATION",
        position="token",
        has_classes=True,
    ),
    "question": HeadKind(
        task="question answering",
        pipeline_tag="question-answering",
        auto_class=AutoModelForQuestionAnswering,
        mapping="QUESTION_ANSWERING",
        outputs=("start_logits", "end_logits"),
        target="start_positions",
    ),
    "choice": HeadKind(
        task="multiple choice",
        pipeline_tag="multiple-choice",
        auto_class=AutoModelForMultipleChoice,
        mapping="MULTIPLE_CHOICE",
        has_choices=True,
    ),
    "image": HeadKind(
        task="image classification",
        pipeline_tag="image-classification",
        auto_class=AutoModelForImageClassification,
        mapping="IMAGE_CLASSIFICATION",
        has_classes=True,
        has_problem=True,
    ),
    "audio": HeadKind(
        task="audio classification",
        pipeline_tag="audio-classification",
        auto_class=AutoModelForAudioClassification,
        mapping="AUDIO_CLASSIFICATION",
        has_classes=True,
        has_problem=True,
    ),
}

# What a text encoder without a head gives: a vector for each token. No loss is known for it, so it is trained by other
# Trainers than ours; it is rounded, exported and checked like any model.
EMBEDDING = "embedding"
WITHOUT_HEAD = HeadKind(
    task="text embeddings",
    pipeline_tag="feature-extraction",
    auto_class=AutoModel,
    mapping="",
    outputs=("last_hidden_state",),
    position="token",
)
