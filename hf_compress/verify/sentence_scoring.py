"""Scoring a folder of sentence-transformers on pairs of texts, by the evaluator that its report was measured with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_compress.extras import extra
from hf_compress.models.sentences import SENTENCE_KINDS, around
from hf_compress.report.outputs import Outputs
from hf_compress.report.report import Report
from hf_compress.report.sentence_rows import BATCH, READERS, inputs_of
from hf_compress.verify.rows import Loaded, NoRowsError, known_preprocessing

BARE = "SentenceTransformer"  # It gives a bare encoder a mean over its tokens, as our measuring does.


@dataclass(frozen=True)
class SentenceRows:
    """Pairs of texts with labels, for a model of sentence-transformers.

    Args:
        model: the model, as its user loads it.
        evaluator: of sentence-transformers, with the pairs.
        loaded: the rows.
    """

    model: nn.Module
    evaluator: Any
    loaded: Loaded

    @classmethod
    def of(cls, folder: Path, report: Report, loaded: Loaded) -> "SentenceRows":
        """Return the rows `loaded` for the model in `folder`. No code of the folder is executed.

        Raises:
            NoRowsError: the report does not say which columns are the texts and the label.
            MissingExtraError: sentence-transformers is not installed.
        """
        with extra("sentences", "The score of this model"):
            import sentence_transformers as library
        found = known_preprocessing(report, loaded)
        if found.label_column is None:
            raise NoRowsError(f"{loaded.name} has no labels.")
        rows = loaded.split.select(loaded.rows)
        one, two = ([str(text) for text in rows[name]] for name in found.columns)
        labels = [value * found.label_scale for value in rows[found.label_column]]
        kind = SENTENCE_KINDS[report.sentence_class or BARE]
        model = getattr(library, kind.name)(
            str(folder),
            device="cpu",
            local_files_only=True,
            model_kwargs={"attn_implementation": "eager", "dtype": torch.float32},
        )
        if found.max_length is not None:
            model.max_seq_length = found.max_length
        return cls(model.eval(), evaluator_of(model, one, two, labels), loaded)

    def inputs(self, most: int) -> list[dict[str, Tensor]]:
        """Return the inputs of the Transformers model for the first `most` batches of texts, or of pairs."""
        found = self.evaluator
        texts = found.sentence_pairs if hasattr(found, "sentence_pairs") else found.sentences1
        return list(inputs_of(self.model, texts[: most * BATCH]))

    def answers(self, model: nn.Module) -> Outputs:
        """Return labels and answers for all rows, with `model` as the Transformers model inside.

        Raises:
            NoRowsError: the model compares embeddings in several ways.
        """
        outputs = READERS[type(self.evaluator).__name__](self.evaluator, around(self.model, model))
        if outputs is None:
            raise NoRowsError(f"The answers of this model to {self.loaded.name} cannot be told apart by rows.")
        return outputs


def evaluator_of(model: Any, one: list[str], two: list[str], labels: list[Any]) -> Any:
    """Return the evaluator of sentence-transformers that scores pairs of texts by `model`."""
    if type(model).__name__ == "CrossEncoder":
        from sentence_transformers.cross_encoder import evaluation

        pairs = cast(Any, [list(pair) for pair in zip(one, two, strict=True)])
        if model.num_labels == 1:
            return evaluation.CrossEncoderCorrelationEvaluator(pairs, labels)
        return evaluation.CrossEncoderClassificationEvaluator(pairs, [round(label) for label in labels])
    options: dict[str, Any] = {"similarity_fn_names": [model.similarity_fn_name]}
    if type(model).__name__ == "SparseEncoder":
        from sentence_transformers.sparse_encoder.evaluation import SparseEmbeddingSimilarityEvaluator

        return SparseEmbeddingSimilarityEvaluator(one, two, labels, **options)
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    return EmbeddingSimilarityEvaluator(one, two, labels, **options)
