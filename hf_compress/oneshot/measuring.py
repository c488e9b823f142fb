"""What a compression without training is measured by: the folder is loaded again and compared with the dense model."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_compress.export.descriptor import Format
from hf_compress.export.parity import BATCHES
from hf_compress.models.heads import Head
from hf_compress.oneshot.comparing import Comparison, compare, usual_scores, with_similarities
from hf_compress.oneshot.source import Source, is_encoder
from hf_compress.oneshot.texts import Texts
from hf_compress.recipe import Recipe
from hf_compress.report.background import label_names, license_and_languages
from hf_compress.report.comparing import with_intervals
from hf_compress.report.describing import described
from hf_compress.report.facts import Baseline
from hf_compress.report.predictions import COMPRESSED, DENSE, save_predictions
from hf_compress.report.report import FormatFacts, Report
from hf_compress.report.scores import RANKING
from hf_compress.verify.rows import Loaded
from hf_compress.verify.scoring import BATCH, Batches

PAIRS = "Pairs of rows are not independent of each other."


@dataclass(frozen=True)
class Measuring:
    """The dense model, the compressed one, and the rows that both answer.

    Args:
        source: of the dense model.
        dense: as loaded.
        compressed: as rounded, before saving.
        tokenizer: of both.
        head: of both.
        texts: the rows.
    """

    source: Source
    dense: PreTrainedModel
    compressed: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    texts: Texts

    @cached_property
    def batches(self) -> Batches:
        """The rows that were held out; rows of similar length share a batch."""
        held = self.texts.held
        lengths = [len(row["input_ids"]) for row in self.texts.preprocessing.inputs(self.tokenizer, held[:])]
        order = sorted(range(len(held)), key=lengths.__getitem__)
        name = self.texts.facts.eval_split
        return Batches(self.head, self.texts.preprocessing, self.tokenizer, Loaded(held, order, name), BATCH)

    @cached_property
    def labels(self) -> dict[int, str] | None:
        """The names of the classes."""
        classifies = self.head.classifies and self.head.descriptor.has_classes
        return label_names(self.dense.config, classifies, self.texts.held)

    def inputs(self) -> list[dict[str, Tensor]]:
        """The inputs of some batches, for comparing formats."""
        return self.batches.inputs(BATCHES)

    def compared(self, other: nn.Module) -> Comparison:
        """Return how alike the dense model and `other` answer, with outputs if there are labels."""
        found, similar = compare(self.dense, other, self.batches, self.source.embed), self.texts.similar
        return found if similar is None else with_similarities(found, self.batches.loaded.rows, similar)

    def report(
        self, folder: Path, recipe: Recipe, *, command: str | None, seconds: float, author: dict[str, Any]
    ) -> Report:
        """Return the report of the compressed model in `folder`, and write the predictions of labelled rows there.

        Args:
            folder: what `save_compressed` returned.
            recipe: with the constant of the steps.
            command: the command line; by default that of this process.
            seconds: what the compression took.
            author: what the author adds to the card, as `read_author` returns it.
        """
        reloaded = self._reloaded(folder)
        found = self.compared(reloaded)
        parity, rows = self._parity(reloaded)
        own = {name: self._usual(found, name) for name in found.outputs}
        scores = self.scores(found)
        dataset, hub_id = self.texts.facts, self.source.hub_id
        license, languages = license_and_languages(self.source.folder, hub_id, dataset)
        report = described(
            folder,
            reloaded,
            recipe,
            head=self.head,
            dense_shapes=self._shapes(),
            feedback=True,
            base_model=self.source.given,
            base_model_hub_id=hub_id,
            base_model_revision=self.source.commit if hub_id else None,
            task=dataset.config or dataset.name.rpartition("/")[2].partition(".")[0],
            dataset=dataset,
            command=command,
            main_metric=next(iter(scores)),
            dense=own.get(DENSE),
            teacher=None,
            compressed=scores,
            parity=parity,
            parity_rows=rows,
            train_seconds=seconds,
            train_steps=0,
            hyperparameters={},
            seed=0,
            labels=self.labels,
            license=license,
            languages=languages,
            baseline=Baseline(start=True, name=self.source.folder.name) if own else None,
            starts_trained=True,
            author=author,
        )
        return self._with_intervals(report, found, folder)

    def meter(self, folder: Path) -> "Meter":
        """Return what measures other formats of the model in `folder`."""
        return Meter(self, self._reloaded(folder))

    def _reloaded(self, folder: Path) -> PreTrainedModel:
        attention = self.dense.config._attn_implementation
        found: PreTrainedModel = type(self.dense).from_pretrained(folder, attn_implementation=attention)
        return found.eval()

    def _parity(self, reloaded: PreTrainedModel) -> tuple[float, int]:
        few = replace(self.batches, loaded=replace(self.batches.loaded, rows=self.batches.loaded.rows[: 8 * BATCH]))
        return compare(self.compressed, reloaded, few, self.source.embed).largest, len(few.loaded.rows)

    def scores(self, found: Comparison) -> dict[str, float]:
        """Return all scores of the second model of a comparison, the main one first."""
        return {**self._usual(found, COMPRESSED), **found.scores}

    def _usual(self, found: Comparison, name: str) -> dict[str, float]:
        if name not in found.outputs:
            return {}
        scores = usual_scores(found.outputs[name], self.head.num_labels, self.labels or {})
        # The similarities of an encoder are compared by their ranks.
        return dict(reversed(scores.items())) if is_encoder(self.head) else scores

    def _shapes(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        with torch.device("meta"):
            one = type(self.dense)(copy.deepcopy(self.dense.config))
        return one, one

    def _with_intervals(self, report: Report, found: Comparison, folder: Path) -> Report:
        """Return the report with the intervals that the rows allow."""
        if found.outputs:
            outputs = found.outputs[DENSE], found.outputs[COMPRESSED]
            order = self.batches.loaded.rows if self.texts.similar is None else range(len(self.texts.similar))
            rows = np.asarray(order) + self._first()
            kept = save_predictions(folder, rows, {DENSE: outputs[0], COMPRESSED: outputs[1]})
            report = with_intervals(replace(report, predictions=kept), outputs[1], outputs[0], report.labels or {})
        own = found.intervals()
        reasons = {name: why for name, why in report.without_interval.items() if name not in own}
        reasons |= {RANKING: PAIRS} if RANKING in found.scores else {}
        return replace(report, intervals={**report.intervals, **own}, without_interval=reasons)

    def _first(self) -> int:
        """Return where the held-out rows begin in their split."""
        part = self.texts.facts.eval_part or ""
        begin = part.rpartition("[")[2].partition(":")[0] if "[" in part else ""
        return int(begin) if begin.isdecimal() else 0


@dataclass(frozen=True)
class Meter:
    """Measures formats on the rows that were held out, as `launch.format_steps.Meter` says."""

    measuring: Measuring
    reloaded: PreTrainedModel

    def read(self, root: Path, kind: Format) -> nn.Module:
        """Return the model of the format under `root`."""
        return kind.read(root / kind.path, self.reloaded)

    def facts(self, other: nn.Module, root: Path, kind: Format, native_deviation: float | None) -> FormatFacts:
        """Return its bytes, its scores, and how far it is from the packed file."""
        measuring = self.measuring
        found = measuring.compared(other)
        packed = compare(self.reloaded, other, measuring.batches, measuring.source.embed)
        return FormatFacts(kind.stored_bytes(root), packed.largest, measuring.scores(found), native_deviation)
