"""What a model predicts: which of its outputs are logits, and which positions of a batch count."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

Kind = Literal["sequence", "token", "question", "choice", "masked", "causal", "seq2seq"]
Problem = Literal["regression", "single_label_classification", "multi_label_classification"]

IGNORED = -100
# Finite, so that no difference of two of them is NaN, and no softmax gives them any weight.
_NEVER = torch.finfo(torch.float32).min / 1e6

# In order: Bart's and its relatives' seq2seq class also stands among the masked language models.
_KINDS: tuple[tuple[Kind, str, str, Any, Mapping[str, str]], ...] = (
    (
        "seq2seq",
        "sequence-to-sequence language modelling",
        "text2text-generation",
        AutoModelForSeq2SeqLM,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ),
    ("masked", "masked language modelling", "fill-mask", AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (
        "causal",
        "causal language modelling",
        "text-generation",
        AutoModelForCausalLM,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ),
    (
        "sequence",
        "sequence classification",
        "text-classification",
        AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    (
        "token",
        "token classification",
        "token-classification",
        AutoModelForTokenClassification,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ),
    (
        "question",
        "question answering",
        "question-answering",
        AutoModelForQuestionAnswering,
        MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    ),
    (
        "choice",
        "multiple choice",
        "multiple-choice",
        AutoModelForMultipleChoice,
        MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    ),
)


@dataclass(frozen=True)
class Head:
    """What a model predicts, and therefore how its outputs are compared.

    A *position* is one prediction: a row of the batch (classification, regression, multiple choice, either end of an
    answer) or a token (token classification, language models). A position *counts* when the model's own loss takes its
    mean over it, so that one count serves the label loss and the distillation loss.
    """

    kind: Kind
    name: str
    pipeline_tag: str
    auto_class: Any
    num_labels: int | None
    problem_type: Problem | None

    @property
    def regression(self) -> bool:
        """Whether the outputs are real numbers to be met, not scores of classes."""
        return self.problem_type == "regression"

    @property
    def classifies(self) -> bool:
        """Whether the outputs are scores of the classes that `config.id2label` names."""
        return self.num_labels is not None and not self.regression

    @property
    def names(self) -> tuple[str, ...]:
        """What the logits are called among the model's outputs."""
        return ("start_logits", "end_logits") if self.kind == "question" else ("logits",)

    def problem(self, inputs: Mapping[str, Any]) -> Problem:
        """What is predicted at one position of this batch.

        A sequence classifier whose `config.problem_type` is not set takes it from the type of its labels, as
        Transformers does: integers are one class of several, floats are several labels each on or off.
        """
        if self.problem_type is not None:
            return self.problem_type
        labels = inputs.get("labels")
        floating = isinstance(labels, Tensor) and labels.is_floating_point()
        return "multi_label_classification" if floating else "single_label_classification"

    def logits(self, outputs: Mapping[str, Any] | tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The logits among the model's outputs: one tensor, or two for question answering (start, end).

        Raises:
            ValueError: the outputs carry no names (`config.return_dict` is False).
        """
        if not isinstance(outputs, Mapping):
            raise ValueError("The model returns a tuple without names. Set `config.return_dict = True`.")
        return tuple(outputs[name] for name in self.names)

    def counted(self, inputs: Mapping[str, Any]) -> Bool[Tensor, "*positions"] | None:
        """Which positions count: one boolean per row (batch,) or per token (batch, tokens), None without labels.

        Labels of -100 do not count, nor does the padding of a token classifier. A causal language model's positions
        are one fewer than its tokens, each standing for the token that follows; with `shift_labels` (sequences packed
        by the collator) there are as many as tokens.
        """
        labels = inputs.get("start_positions" if self.kind == "question" else "labels")
        if not isinstance(labels, Tensor):
            return None
        if self.kind == "question" or self.problem(inputs) != "single_label_classification":
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        if self.kind in ("sequence", "choice"):
            return labels.reshape(-1) != IGNORED
        if self.kind == "causal":
            shifted = inputs.get("shift_labels")
            return (labels[..., 1:] if shifted is None else shifted) != IGNORED
        counted = labels != IGNORED
        mask = inputs.get("attention_mask")
        if self.kind == "token" and mask is not None and mask.shape == labels.shape:
            counted = counted & mask.bool()
        return counted

    def count(self, inputs: Mapping[str, Any]) -> Int[Tensor, ""] | None:
        """How many positions of the batch count, or None without labels."""
        counted = self.counted(inputs)
        return None if counted is None else counted.sum()

    def positions(
        self, outputs: Mapping[str, Any] | tuple[Any, ...], inputs: Mapping[str, Any]
    ) -> list[Float[Tensor, "positions classes"]]:
        """The logits at the positions that count, at least in float32: one tensor, two for question answering.

        The choice depends on `inputs` alone, so a student's and a teacher's outputs for the same batch correspond row
        by row. The classes of question answering are the tokens; padding among them has no probability.

        Raises:
            ValueError: the batch has no labels, from which the positions that count are known.
        """
        counted = self.counted(inputs)
        if counted is None:
            raise ValueError(
                f"A batch for {self.name} has no labels (its columns: {', '.join(inputs)}), from which the positions "
                "that count are known. Add the labels, or name them as the model's forward does."
            )
        selected = []
        for logits in self.logits(outputs):
            if not logits.is_floating_point() or logits.element_size() < 4:
                logits = logits.float()
            mask = inputs.get("attention_mask")
            if self.kind == "question" and mask is not None:
                logits = logits.masked_fill(~mask.bool(), _NEVER)
            if self.kind == "causal" and inputs.get("shift_labels") is None:
                logits = logits[..., :-1, :]
            selected.append(logits[counted.to(logits.device)])
        return selected

    def relabelled(self, inputs: Mapping[str, Any], fill_empty: bool) -> dict[str, Any]:
        """The inputs with labels of -100 wherever a token classifier's position does not count.

        Args:
            fill_empty: whether a batch in which no position counts gets labels of class 0 instead, so that the mean
                over its positions is a number. The caller gives that number no weight.
        """
        inputs = dict(inputs)
        counted = self.counted(inputs)
        if counted is None or self.kind == "question" or self.problem(inputs) != "single_label_classification":
            return inputs
        if self.kind == "token":
            inputs["labels"] = inputs["labels"].masked_fill(~counted, IGNORED)
        if fill_empty:
            for name in ("labels", "shift_labels"):
                if inputs.get(name) is not None:
                    inputs[name] = torch.where(counted.any(), inputs[name], torch.zeros_like(inputs[name]))
        return inputs


def bare(model: nn.Module) -> Any:
    """The Transformers model inside what `torch.compile`, data parallelism and PEFT wrap around it."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def has_own_forward(model: nn.Module) -> bool:
    """Whether somebody has put a `forward` on this very model, as TRL's trainers do, in place of its class's.

    What accelerate puts there calls the one that it found, and keeps that.
    """
    inner = bare(model)
    own = vars(inner).get("_original_forward", vars(inner).get("forward"))
    return own is not None and getattr(own, "__func__", None) is not type(inner).forward


def find_head(model: nn.Module) -> Head:
    """The head of a model, found from its class (or the class it derives from) and its configuration.

    Raises:
        ValueError: a model whose logits and positions are not known here.
    """
    inner = bare(model)
    classes = {cls.__name__ for cls in type(inner).__mro__}
    for kind, name, pipeline_tag, auto_class, architectures in _KINDS:
        if not classes & set(architectures.values()):
            continue
        # Only `loss_function` shifts. BartForCausalLM and a few others leave that to the caller.
        if kind == "causal" and "loss_function" not in inspect.unwrap(type(inner).forward).__code__.co_names:
            raise ValueError(
                f"{type(inner).__name__} compares its logits with labels of its own making, not with the following "
                "token. Use a causal language model whose forward shifts the labels."
            )
        num_labels = inner.config.num_labels if kind in ("sequence", "token") else None
        problem: Problem | None = "single_label_classification"
        if kind == "sequence":
            problem = inner.config.problem_type or ("regression" if num_labels == 1 else None)
            name = {"regression": "regression", "multi_label_classification": "multi-label classification"}.get(
                problem or "", name
            )
        return Head(kind, name, pipeline_tag, auto_class, num_labels, problem)
    raise ValueError(
        f"{type(inner).__name__} has no head that is known here. Use a model for "
        + ", ".join(name for _, name, *_ in _KINDS)
        + "."
    )


def has_default_labels(config: PreTrainedConfig) -> bool:
    """Whether every class is called `LABEL_0`, `LABEL_1`, ... because nobody named it."""
    return all(re.fullmatch(r"LABEL_\d+", str(name)) for name in config.id2label.values())


def class_order(student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[int] | None:
    """The teacher's class for each of the student's classes, by name without regard to case; None if names differ.

    Reading the teacher's logits in this order puts them in the student's.
    """
    student_names, teacher_names = (
        [str(config.id2label[index]).casefold() for index in range(config.num_labels)] for config in (student, teacher)
    )
    if student_names == teacher_names:
        return list(range(len(student_names)))
    if sorted(student_names) != sorted(teacher_names) or len(set(student_names)) < len(student_names):
        return None
    return [teacher_names.index(name) for name in student_names]
