"""The head of a model: its inputs, its outputs, and which positions of a batch count."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.models.examples import SHAPES, input_names, random_batch
from hf_compress.models.kinds import EMBEDDING, HEAD_KINDS, HEADLESS, UNSHIFTED, WITHOUT_HEAD, HeadKind

Problem = Literal["regression", "single_label_classification", "multi_label_classification"]

# Arguments of a forward that make a model compute a loss.
LABELS = frozenset({"labels", "label", "label_ids", "shift_labels", "start_positions", "end_positions"})
IGNORED = -100
CHOICES = 3
# Finite, so that the difference of two is not NaN, and so low that softmax gives it no weight.
_NEVER = torch.finfo(torch.float32).min / 1e6


@dataclass(frozen=True)
class Head:
    """The head of one model: what it reads, what it predicts, and how its outputs are compared.

    A *position* is one prediction: a row of the batch (classification, regression, multiple choice, either end of an
    answer) or a token (token classification, language models). A position *counts* if the model's own loss averages
    over it, so one count serves the label loss and the distillation loss.

    Args:
        kind: the key in `HEAD_KINDS`, or "embedding" for a text encoder without a head.
        main_input: the model's main input: `input_ids`, `pixel_values`, `input_values` or `input_features`.
        num_labels: the number of classes; None if the configuration does not say.
        problem_type: what a position predicts; None if the labels of a batch decide.

    Example:
        >>> from hf_compress.models import Head
        >>> head = Head("sequence", main_input="input_ids", num_labels=1, problem_type="regression")
        >>> head.name, head.auto_class.__name__
        ('regression', 'AutoModelForSequenceClassification')
    """

    kind: str
    main_input: str
    num_labels: int | None
    problem_type: Problem | None

    @property
    def descriptor(self) -> HeadKind:
        """The descriptor that all heads of this kind share."""
        return WITHOUT_HEAD if self.kind == EMBEDDING else HEAD_KINDS[self.kind]

    @property
    def name(self) -> str:
        """The task in words, such as "token classification" or "regression"."""
        task = self.descriptor.task
        subject = task.split()[0] + " "
        if not self.descriptor.has_problem or self.problem_type in (None, "single_label_classification"):
            return task
        subject = "" if self.kind == "sequence" else subject
        multi = self.problem_type == "multi_label_classification"
        return f"multi-label {subject}classification" if multi else f"{subject}regression"

    @property
    def pipeline_tag(self) -> str:
        """The Hub's name of the task."""
        return self.descriptor.pipeline_tag

    @property
    def auto_class(self) -> Any:
        """The `AutoModelFor...` class that loads such a model."""
        return self.descriptor.auto_class

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the logits among the model's outputs."""
        return self.descriptor.outputs

    @property
    def answers_tokens(self) -> bool:
        """Whether a row has logits for each of its tokens, as language models and question answering do."""
        return self.descriptor.position != "row" or len(self.names) > 1

    @property
    def takes_text(self) -> bool:
        """Whether the model reads token ids."""
        return self.main_input == "input_ids"

    @property
    def regression(self) -> bool:
        """Whether the model predicts real numbers, not scores of classes."""
        return self.problem_type == "regression"

    @property
    def classifies(self) -> bool:
        """Whether the outputs are scores of the classes that `config.id2label` names."""
        return self.num_labels is not None and not self.regression

    def inputs(self, model: nn.Module) -> list[str]:
        """Return the names of the inputs that an exported graph of `model` takes, in the order of its `forward`.

        `token_type_ids` are left out where the model knows one type only.
        """
        return input_names(bare(model), self.main_input, self.descriptor.decodes)

    def example_batch(self, model: nn.Module, rows: int = 2, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
        """Return random inputs for `model`, on the CPU and without labels.

        Every row but the first is half padding, if the model takes an `attention_mask`.

        Args:
            rows: the rows of the batch.
            length: tokens of a text or frames of a sound. Image models ignore it.
            seed: the same seed gives the same batch.

        Example:
            >>> from transformers import BertConfig, BertForSequenceClassification
            >>> from hf_compress.models import find_head
            >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
            >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
            >>> batch = find_head(model).example_batch(model, rows=2, length=4)
            >>> {name: tuple(tensor.shape) for name, tensor in batch.items()}
            {'input_ids': (2, 4), 'attention_mask': (2, 4), 'token_type_ids': (2, 4)}
        """
        shape = (rows, CHOICES, length) if self.descriptor.has_choices else (rows, length)
        return random_batch(bare(model), self.main_input, self.inputs(model), shape, seed)

    def rows(self, batch: Mapping[str, Any]) -> int:
        """Return the number of rows in a batch."""
        tensors = (value for value in batch.values() if isinstance(value, Tensor) and value.ndim)
        return len(batch[self.main_input] if self.main_input in batch else next(tensors))

    def problem(self, inputs: Mapping[str, Any]) -> Problem:
        """Return what is predicted at one position of this batch.

        If `config.problem_type` is not set, the type of the labels decides, as in Transformers: integers name one
        class of several, floats are independent labels, each on or off.
        """
        if self.problem_type is not None:
            return self.problem_type
        labels = inputs.get("labels")
        floating = isinstance(labels, Tensor) and labels.is_floating_point()
        return "multi_label_classification" if floating else "single_label_classification"

    def logits(self, outputs: Mapping[str, Any] | tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Return the logits among the model's outputs: one tensor, or two for question answering (start, end).

        Raises:
            ValueError: the outputs are a tuple without names (`config.return_dict` is False).
        """
        if not isinstance(outputs, Mapping):
            raise ValueError("The model returns a tuple without names. Set `config.return_dict = True`.")
        return tuple(outputs[name] for name in self.names)

    def counted(self, inputs: Mapping[str, Any]) -> Bool[Tensor, "*positions"] | None:
        """Return which positions count, as a boolean per row (batch,) or per token (batch, tokens).

        Labels of -100 and the padding of a token classifier do not count. A causal language model has one
        position fewer than tokens, because each predicts the token that follows; with `shift_labels` (sequences packed
        by the collator) it has as many as tokens. The result is None if the batch has no labels.
        """
        labels = inputs.get(self.descriptor.target)
        if not isinstance(labels, Tensor):
            return None
        if self.kind == "question" and self.main_input in inputs:
            # The models ignore an end of the answer that is outside the text.
            length = inputs[self.main_input].shape[-1]
            return (labels.reshape(-1) < length) & (inputs["end_positions"].reshape(-1) < length)
        if self.kind == "question" or self.problem(inputs) != "single_label_classification":
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        if self.descriptor.position == "row":
            return labels.reshape(-1) != IGNORED
        if self.descriptor.position == "next token":
            shifted = inputs.get("shift_labels")
            return (labels[..., 1:] if shifted is None else shifted) != IGNORED
        counted = labels != IGNORED
        mask = inputs.get("attention_mask")
        if self.kind == "token" and mask is not None and mask.shape == labels.shape:
            counted = counted & mask.bool()
        return counted

    def count(self, inputs: Mapping[str, Any]) -> Int[Tensor, ""] | None:
        """Return how many positions of the batch count, or None without labels."""
        counted = self.counted(inputs)
        return None if counted is None else counted.sum()

    def positions(
        self, outputs: Mapping[str, Any] | tuple[Any, ...], inputs: Mapping[str, Any]
    ) -> list[Float[Tensor, "positions classes"]]:
        """Return the logits at the positions that count, in float32 or wider: one tensor, two for question answering.

        The choice depends on `inputs` alone, so the student's and the teacher's results for the same batch correspond
        row by row. The classes of question answering are the tokens; padding among them has no probability.

        Raises:
            ValueError: the batch has no labels, so the positions that count are unknown.
        """
        counted = self.counted(inputs)
        if counted is None:
            raise ValueError(
                f"A batch for {self.name} has no labels (its columns: {', '.join(inputs)}), so the positions that "
                "count are unknown. Add the labels, or name them as the model's forward does."
            )
        selected = []
        for logits in self.logits(outputs):
            if not logits.is_floating_point() or logits.element_size() < 4:
                logits = logits.float()
            mask = inputs.get("attention_mask")
            if self.kind == "question" and mask is not None:
                logits = logits.masked_fill(~mask.bool(), _NEVER)
            if self.descriptor.position == "next token" and inputs.get("shift_labels") is None:
                logits = logits[..., :-1, :]
            selected.append(logits[counted.to(logits.device)])
        return selected

    def relabelled(self, inputs: Mapping[str, Any], fill_empty: bool) -> dict[str, Any]:
        """Return the inputs, with ignored labels at all positions that do not count.

        Args:
            fill_empty: whether a batch without any counted position gets labels of class 0, so that the mean over its
                positions is a number. The caller gives that number no weight.
        """
        inputs = dict(inputs)
        counted = self.counted(inputs)
        if counted is not None and self.kind == "question" and self.main_input in inputs:
            outside = inputs[self.main_input].shape[-1]
            for name in ("start_positions", "end_positions"):
                kept = inputs[name].reshape(-1).masked_fill(~counted, outside)
                inputs[name] = torch.where(counted.any(), kept, torch.zeros_like(kept)) if fill_empty else kept
            return inputs
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
    """Return the Transformers model inside the wrappers of `torch.compile`, data parallelism and PEFT."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def has_own_forward(model: nn.Module) -> bool:
    """Return whether somebody replaced the `forward` of this very instance, as TRL's trainers do.

    A `forward` that accelerate put there does not count: it calls the one it found, and keeps it.
    """
    inner = bare(model)
    own = vars(inner).get("_original_forward", vars(inner).get("forward"))
    return own is not None and getattr(own, "__func__", None) is not type(inner).forward


def find_head(model: nn.Module) -> Head:
    """Return the head of a model, found from its class (or a class it derives from) and its configuration.

    Raises:
        ValueError: the head is unknown, a causal language model does not shift its labels, or the main input is not
            text, pixels or sound.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from hf_compress.models import find_head
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> head = find_head(ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes)))
        >>> head.name, head.main_input, head.pipeline_tag
        ('image classification', 'pixel_values', 'image-classification')
    """
    inner = bare(model)
    classes = {cls.__name__ for cls in type(inner).__mro__}
    kind = next((kind for kind, entry in HEAD_KINDS.items() if classes & entry.architectures()), None)
    if kind is None:
        known = ", ".join(entry.task for entry in HEAD_KINDS.values())
        raise ValueError(f"{type(inner).__name__} has no known head. Use a model for one of these tasks: {known}.")
    if kind == "causal" and classes & UNSHIFTED:
        raise ValueError(
            f"{type(inner).__name__} compares its logits with the labels as they are, not with the following token. "
            "Use a causal language model whose forward shifts the labels."
        )
    main_input = cast(PreTrainedModel, inner).main_input_name
    if main_input not in {"input_ids", *SHAPES}:
        raise ValueError(
            f"{type(inner).__name__} reads `{main_input}`. Use a model that reads `input_ids`, "
            f"{', '.join(f'`{name}`' for name in SHAPES)}."
        )
    entry = HEAD_KINDS[kind]
    num_labels = inner.config.num_labels if entry.has_classes else None
    problem: Problem | None = "single_label_classification"
    if entry.has_problem:
        problem = inner.config.problem_type or ("regression" if num_labels == 1 else None)
    return Head(kind, main_input, num_labels, problem)


def find_outputs(model: nn.Module) -> Head:
    """Return the head of a model, or what stands for it in a text encoder without one: the last hidden states.

    Raises:
        ValueError: the head is unknown, and the model is no such encoder.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models import find_outputs
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> find_outputs(BertModel(BertConfig(vocab_size=9, **sizes))).names
        ('last_hidden_state',)
    """
    inner = bare(model)
    known = isinstance(inner, PreTrainedModel) and {cls.__name__ for cls in type(inner).__mro__} & HEADLESS
    if known and inner.main_input_name == "input_ids" and not inner.config.is_encoder_decoder:
        return Head(EMBEDDING, "input_ids", None, None)
    return find_head(model)
