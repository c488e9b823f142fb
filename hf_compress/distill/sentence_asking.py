"""A Trainer of sentence-transformers that computes what student and teacher answer to a batch."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_compress.distill.capturing import CAPTURED
from hf_compress.distill.layering import LayeringMixin
from hf_compress.distill.sentence_batches import DATASET, IDS, TEXTS, Call, Noted, TextsCollator, prompt_for
from hf_compress.distill.sentence_cache import SentenceCache, identity_of
from hf_compress.distill.sentence_teacher import asked
from hf_compress.models.sentences import SentenceKind, pairs_of, sentence_kind

ROWS = 1024  # Of the training set that are read at once for the cache.


@dataclass(frozen=True)
class Group:
    """Texts of a batch, or its pairs of texts, that student and teacher read together.

    Args:
        features: the student's inputs.
        texts: what the teacher reads.
        prompt: in front of each text; None if there is none.
    """

    features: dict[str, Any]
    texts: Sequence[Any]
    prompt: str | None


class SentenceAskingMixin(LayeringMixin):
    """The part of a `SentenceDistillationMixin` that asks its teacher, or looks its answers up (`--distill_cache`)."""

    data_collator: Any
    train_dataset: Any
    teacher: nn.Module | None = None
    _cache: SentenceCache | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches to train on, with their texts if a teacher reads them."""
        given = self.data_collator
        if self.teacher is not None and self.distillation.distill_cache is not None:
            self._cache = SentenceCache.filled(
                self.distillation.distill_cache, identity_of(self.teacher), self._questions(), self._ask
            )
        if self.teacher is not None and not self._kind.scores_pairs:
            self.data_collator = TextsCollator(given)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = given

    @property
    def _kind(self) -> SentenceKind:
        return cast(SentenceKind, sentence_kind(self.model))

    def _groups(self, inputs: dict[str, Any], texts: Mapping[str, Sequence[Any]] | None) -> list[Group]:
        """Return the texts of a batch: a group for each column, or one of all pairs.

        Args:
            inputs: the batch.
            texts: by column; None for models that score pairs.
        """
        if texts is None:
            pairs, prompt = pairs_of(inputs), inputs.get("prompt")
            features = cast(Any, self.model).preprocess(pairs, prompt=prompt, task=inputs.get("task"))
            return [Group(cast(dict[str, Any], self._prepare_inputs(features)), pairs, prompt)]
        features, _ = cast(Any, self).collect_features({name: own for name, own in inputs.items() if name != TEXTS})
        if len(features) != len(texts) or not all(isinstance(text, str) for own in texts.values() for text in own):
            raise ValueError(
                "A teacher reads columns of texts, and the training set has others besides labels: "
                f"{', '.join(texts)}. Remove what is no text, or train without `--distill_teacher`."
            )
        prompts, dataset = getattr(self.args, "prompts", None), inputs.get(DATASET)
        return [
            Group(own, texts[name], prompt_for(prompts, dataset, name))
            for own, name in zip(features, texts, strict=True)
        ]

    def _answers(
        self, model: nn.Module, groups: list[Group], noted: Noted
    ) -> tuple[Tensor, Tensor, dict[str, tuple[float, Tensor]]]:
        """Return the outputs of student and teacher for all groups, and the losses on layers with their weights.

        Args:
            noted: what the student has computed already.
        """
        ours = [self._computed(model, group, noted) for group in groups]
        theirs = [self._taught(group) for group in groups]
        student, teacher = (torch.cat([call.outputs for call in calls]) for calls in (ours, theirs))
        layers: dict[str, tuple[float, Tensor]] = {}
        for group, one, two in zip(groups, ours, theirs, strict=True):
            found = self._layer_losses({CAPTURED: one.captured}, {CAPTURED: two.captured}, group.features)
            for name, (weight, value) in found.items():
                share = value * len(group.texts) / len(student)
                layers[name] = (weight, layers[name][1] + share if name in layers else share)
        return student, teacher.to(student), layers

    def _computed(self, model: nn.Module, group: Group, noted: Noted) -> Call:
        """Return the student's outputs, which the script's loss may have computed already."""
        ids = group.features[IDS]
        found = noted.of(ids)
        if found is None or (self._layerwise is not None and found.captured is None):
            with self._captured("student"):
                outputs = self._run(model, group.features)
            found = Call(ids, outputs[self._kind.output], outputs.get(CAPTURED))
        return Call(ids, _dense(found.outputs), found.captured)

    def _taught(self, group: Group) -> Call:
        """Return the teacher's outputs, live or kept. Its layers are compared on the student's tokens."""
        assert self.teacher is not None
        ids = group.features[IDS]
        if self._layerwise is not None:
            outputs = self._teach(self.model, group.features)
            return Call(ids, _dense(outputs[self._kind.output]).reshape(len(ids), -1), outputs.get(CAPTURED))
        if self._cache is not None:
            return Call(ids, self._cache.of(group.prompt, group.texts))
        return Call(ids, self._ask(group.prompt, group.texts))

    def _ask(self, prompt: str | None, texts: Sequence[Any]) -> Tensor:
        return asked(cast(nn.Module, self.teacher), texts, prompt)

    def _run(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """Return the student's outputs for the inputs of texts."""
        return model(dict(batch))  # The library's modules add to the dictionary that they get.

    @torch.no_grad()
    def _teach(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Return the teacher's outputs for the inputs of the student, with what layerwise losses compare."""
        with torch.autocast(self.args.device.type, enabled=False), self._captured("teacher"):
            return cast(nn.Module, self.teacher)(dict(inputs))

    def _mean_over_rows(self, values: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return values.mean()

    def _training_sets(self) -> list[tuple[str | None, Any]]:
        """Return the training sets by name; one alone has none."""
        given = self.train_dataset
        return list(given.items()) if isinstance(given, Mapping) else [(None, given)]

    def _check_cache(self) -> None:
        """Check that a teacher can be asked about all rows before training.

        Raises:
            ValueError: the rows are a stream.
        """
        if any(not isinstance(dataset, Sized) for _, dataset in self._training_sets()):
            raise ValueError(
                "`--distill_cache` needs a training set with a length, because the teacher is asked about all of it "
                "before training; this is a stream. Leave the option out."
            )

    def _questions(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the prompt and the text, or the pair, of everything that the teacher will be asked about."""
        prompts = getattr(self.args, "prompts", None)
        for name, dataset in self._training_sets():
            for start in range(0, len(dataset), ROWS):
                rows = [dataset[place] for place in range(start, min(start + ROWS, len(dataset)))]
                if self._kind.scores_pairs:
                    batch = self.data_collator(rows)
                    yield from ((batch.get("prompt"), pair) for pair in pairs_of(batch))
                    continue
                left = {DATASET, *self.data_collator.valid_label_columns}
                for column in (column for column in rows[0] if column not in left):
                    prompt = prompt_for(prompts, name, column)
                    yield from ((prompt, row[column]) for row in rows)


def _dense(outputs: Tensor) -> Tensor:
    return outputs.to_dense() if outputs.is_sparse else outputs
