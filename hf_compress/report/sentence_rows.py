"""The texts that a trainer of sentence-transformers evaluates on, and what models answer to them row by row."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_compress.models.heads import bare
from hf_compress.models.sentences import pairs_of, sentence_kind
from hf_compress.models.targets import transformer
from hf_compress.report.outputs import Outputs

COMPARED, BATCH = 256, 32  # Texts, or pairs of texts, by which two models are compared.


def first_evaluator(trainer: Any) -> Any:
    """The evaluator whose main score stands for the run: the first of several; None if there is none."""
    found = trainer.evaluator
    several = getattr(found, "evaluators", None)
    return several[0] if several else found


def primary_metric(trainer: Any, scores: Mapping[str, float]) -> str | None:
    """The score that the evaluator calls its main one, by its name in the report; None if it names none.

    Args:
        scores: what was evaluated. With several evaluation sets their names stand in front.
    """
    named = getattr(first_evaluator(trainer), "primary_metric", None)
    return next((name for name in scores if named and (name == named or name.endswith(f"_{named}"))), None)


def evaluator_rows(trainer: Any) -> int:
    """The number of rows of the evaluator: its queries, or else its longest list of texts; 0 if it has none."""
    values = {} if trainer.evaluator is None else vars(first_evaluator(trainer))
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple)}
    return len(lists["queries"]) if "queries" in lists else max(map(len, lists.values()), default=0)


def outputs_of(trainer: Any, model: nn.Module) -> Outputs | None:
    """What `model` answers to each row of the evaluator, beside the labels; None if the rows cannot be told apart.

    Args:
        model: of sentence-transformers.
    """
    evaluator = first_evaluator(trainer)
    read = READERS.get(type(evaluator).__name__)
    return None if read is None else read(evaluator, model)


def _similarities(evaluator: Any, model: Any) -> Outputs | None:
    if [*evaluator.similarity_fn_names] != [model.similarity_fn_name]:
        return None  # Scores by several functions, or by another than the model's.
    ours, theirs = (_embedded(evaluator, model, texts) for texts in (evaluator.sentences1, evaluator.sentences2))
    found = model.similarity_pairwise(ours, theirs).cpu().numpy()
    return Outputs("numbers", np.asarray(evaluator.scores, np.float64), found.astype(np.float64))


def _embedded(evaluator: Any, model: Any, texts: list[str]) -> Any:
    """Embeddings as the evaluator computes them.

    An evaluator of sparse embeddings counts their zeros, in lists that it has only while it is called.
    """
    counts = vars(evaluator).get("sparsity_stats")
    if counts is None:
        return evaluator.embed_inputs(model, texts)
    evaluator.sparsity_stats = defaultdict(list)
    try:
        return evaluator.embed_inputs(model, texts)
    finally:
        evaluator.sparsity_stats = counts


def _numbers(evaluator: Any, model: Any) -> Outputs:
    found = _predicted(evaluator, model)
    return Outputs("numbers", np.asarray(evaluator.scores, np.float64), found.astype(np.float64))


def _classes(evaluator: Any, model: Any) -> Outputs | None:
    if model.num_labels == 1:
        return None  # It looks for the best threshold, which is no score of rows.
    return Outputs("classes", np.asarray(evaluator.labels), _predicted(evaluator, model).argmax(1))


def _predicted(evaluator: Any, model: Any) -> Any:
    return model.predict(
        evaluator.sentence_pairs,
        prompt_name=evaluator.prompt_name,
        batch_size=evaluator.batch_size,
        show_progress_bar=False,
    )


# By the name of the evaluator's class.
READERS: dict[str, Callable[[Any, Any], Outputs | None]] = {
    "EmbeddingSimilarityEvaluator": _similarities,
    "SparseEmbeddingSimilarityEvaluator": _similarities,
    "CrossEncoderCorrelationEvaluator": _numbers,
    "CrossEncoderClassificationEvaluator": _classes,
}


def evaluated_pairs(trainer: Any) -> tuple[list[tuple[str, str]], list[float]] | None:
    """The pairs of texts that the evaluator scores, and their labels; None if it has something else.

    Also None if it changes what the model reads or gives, by a prompt, fewer dimensions or another precision.
    """
    evaluator = first_evaluator(trainer)
    changing = (getattr(evaluator, name, None) for name in ("precision", "truncate_dim", "prompt_name"))
    if type(evaluator).__name__ not in READERS or any(value is not None for value in changing):
        return None
    if hasattr(evaluator, "sentence_pairs"):
        pairs, labels = evaluator.sentence_pairs, vars(evaluator).get("scores", vars(evaluator).get("labels"))
    else:
        pairs, labels = zip(evaluator.sentences1, evaluator.sentences2, strict=True), evaluator.scores
    return [(one, two) for one, two in pairs], [float(label) for label in labels]


def compared_texts(trainer: Any) -> list[Any]:
    """Some texts that the model is made for, or pairs of texts: of its evaluation set, or else of the training set."""
    kind = sentence_kind(bare(trainer.model))
    given = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    rows = next(iter(given.values())) if isinstance(given, Mapping) else given
    some = [dict(row) for _, row in zip(range(COMPARED), rows, strict=False)]
    left = {"dataset_name", *trainer.data_collator.valid_label_columns}
    batch = {name: [row[name] for row in some] for name in (some[0] if some else ()) if name not in left}
    if kind is not None and kind.scores_pairs:
        return pairs_of(batch)[:COMPARED]
    return [text for texts in zip(*batch.values(), strict=True) for text in texts if isinstance(text, str)][:COMPARED]


def answers(model: Any, texts: Sequence[Any]) -> Tensor:
    """What a model of sentence-transformers gives for texts: their embeddings, or the scores of pairs."""
    kind = sentence_kind(model)
    options = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": BATCH}
    if kind is not None and kind.scores_pairs:
        return model.predict(list(texts), activation_fn=nn.Identity(), **options)
    found = model.encode(list(texts), **options)
    return found.to_dense() if found.is_sparse else found


def inputs_of(model: Any, texts: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
    """The inputs of the Transformers model in `model` for texts, in batches."""
    inner = bare(transformer(model))
    known = inspect.signature(inner.forward).parameters
    for begin in range(0, len(texts), BATCH):
        features = model.preprocess(list(texts[begin : begin + BATCH]))
        yield {
            name: value.to(inner.device)
            for name, value in features.items()
            if name in known and isinstance(value, torch.Tensor)
        }
