"""Compression without training: steps by sensitivity, rounding with error feedback, a folder with report and card."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_compress.checkpoint.aside import check_free, sweep, written_aside
from hf_compress.checkpoint.save import save_compressed
from hf_compress.export.formats import FORMATS, check_recipe, exported
from hf_compress.goals import BudgetArguments
from hf_compress.launch.format_steps import FormatSteps
from hf_compress.layers.attention import round_attention
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.heads import Head
from hf_compress.oneshot.measuring import Measuring
from hf_compress.oneshot.source import COSINE, Source
from hf_compress.oneshot.texts import Data, Texts, read_texts
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.ranges import observe
from hf_compress.quantize.spending import LEAST_BITS, Spent, least_bytes, spend
from hf_compress.recipe import DEFAULT_SCHEME, Recipe
from hf_compress.report.author import read_author
from hf_compress.report.card import save_card
from hf_compress.report.report import Report
from hf_compress.verify.rows import Loaded
from hf_compress.verify.scoring import Batches

# The sample that tells how much each weight counts: so many rows, or fewer long ones.
ROWS, TOKENS, BATCH = 1024, 1 << 15, 16
COUNTED = 1 << 15  # Tokens are counted in so many rows.

Tell = Callable[[str], object]


def quantize_once(
    model: str | Path,
    data: Data | str,
    out: str | Path,
    *,
    budget_mb: float,
    scheme: str = DEFAULT_SCHEME,
    exclude: Sequence[str] = (),
    formats: Sequence[str] = (),
    max_length: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    command: str | None = None,
    card_metadata: str | Path | Mapping[str, Any] | None = None,
    tell: Tell = str,
) -> Report:
    """Compress a model without training into the folder `out`, with report and card, and return the report.

    About 1,000 rows of text tell how much each weight counts, and more rows how often each token occurs. The steps
    are fitted to the bytes, linear layers are rounded with error feedback, and ranges of activations are observed if
    the scheme has them. Nobody needs labels. What is reported is measured on other rows, on the model as loaded again:
    how alike its answers or embeddings are to those of the dense model, and its scores if the rows have labels. The
    folder appears whole or not at all. `from_pretrained` loads it, and so does SentenceTransformer its own.

    Args:
        model: a folder or a Hub id: an encoder, with or without a head.
        data: texts, with options or by their name alone.
        out: a folder that does not exist yet, or is empty.
        budget_mb: megabytes (10^6 bytes) of the packed file.
        scheme: the number format: one of `SCHEMES` with 8-bit rows. `int8-weight` leaves inputs in floating point.
        exclude: regular expressions of layers that stay in floating point.
        formats: names from `hf_compress.export.FORMATS` to write as well.
        max_length: tokens that texts are cut to. By default 128, or fewer if the model takes fewer.
        revision: of a model of the Hub.
        token: a Hub token.
        command: the command line for the card. By default that of this process.
        card_metadata: what the author adds to the card, as `--compress_card_metadata` says.
        tell: is told what is done, a sentence at a time.

    Raises:
        ValueError: there is no such model, or none for texts; the data are empty or have no text; the budget is too
            small; the metadata are not allowed; or `out` is not free.
        OSError: the files cannot be written.

    Example:
        >>> from hf_compress import quantize_once
        >>> report = quantize_once("bert-folder", "sentences.txt", "small", budget_mb=7)  # doctest: +SKIP
        >>> report.compressed["kl_divergence"]  # doctest: +SKIP
        0.0067
    """
    target, author = check_free(out), read_author(card_metadata, "--card_metadata")
    sweep(target.parent)
    options = QuantizationArguments(quant_scheme=scheme, quant_exclude=list(exclude))
    recipe = Recipe(quantization=options, budget=BudgetArguments(compress_budget_mb=budget_mb))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"`--formats` must be among {', '.join(FORMATS)}; got {', '.join(unknown)}.")
    for kind in exported(formats):
        kind.require()
    check_recipe(formats, recipe)
    data = data if isinstance(data, Data) else Data(str(data), token=token)
    begun = time.monotonic()
    source = Source.of(model, revision=revision, token=token)
    compressed, tokenizer = source.load(), source.tokenizer()
    head = source.head(compressed)
    _check_budget(compressed, recipe)
    texts = read_texts(data, head, compressed.config, source.length(compressed, tokenizer, max_length))
    if texts.similar is not None and source.similarity != COSINE:
        texts = texts.unrepeatable(f"The model compares embeddings by `{source.similarity}`, the report by cosine.")
    tell(
        f"Model: {source.given}, {head.name}, {sum(one.numel() for one in compressed.parameters()) / 1e6:.1f} million "
        f"weights. Texts: {len(texts.sample):,} rows to learn from, {len(texts.held):,} others to measure on, "
        f"{texts.answers}."
    )
    run = _Run(source, compressed, tokenizer, head, texts)
    spent = run.quantize(options, recipe.budget.bytes, tell)
    recipe = replace(recipe, quantization=replace(options, quant_step=spent.constant))
    tell(f"Rounded all weights: the file will have {spent.bytes / 1e6:.2f} MB. Saving and measuring...")
    measuring = Measuring(source, source.load(), compressed, tokenizer, head, texts)
    with written_aside(target.parent, target.name, replace=False) as aside:
        save_compressed(compressed, aside, recipe, processing_class=tokenizer)
        source.copy_small_files(aside)
        seconds = time.monotonic() - begun
        report = measuring.report(aside, recipe, command=command, seconds=seconds, author=author)
        report.save(aside)
        save_card(aside)
        steps = FormatSteps(
            aside,
            aside.parent / "format",
            batches=measuring.inputs(),
            meter=measuring.meter(aside),
        )
        steps.add(formats, tell)
        return Report.load(aside)


@dataclass(frozen=True)
class _Run:
    """A model to round, and the texts to do it by."""

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    texts: Texts

    def quantize(self, options: QuantizationArguments, limit: float, tell: Tell) -> Spent:
        """Round the model in place, and return what was spent."""
        model = self.model
        quantize_layers(model, options.scheme, options.quant_exclude, steps=True)
        round_attention(model, options.scheme, options.quant_exclude)
        counts, lengths = self._counted()
        rows = _sampled(lengths)
        tell(
            f"Counted tokens in {len(lengths):,} rows. Measuring how much each weight counts on {len(rows):,} rows..."
        )
        spent = spend(
            model,
            _told(self._batches(rows), -(-len(rows) // BATCH), tell),
            limit,
            counts=counts,
            exclude=options.quant_exclude,
            pooling=self.source.pooling,
        )
        observe(model, self._batches(rows))
        for layer in compressed_layers(model).values():
            layer.quantizing = True
        with torch.no_grad():  # Layers note whether they round when they are called.
            model(**next(self._batches(rows[:1])))
        return spent

    def _counted(self) -> tuple[Int[Tensor, " tokens"], dict[int, int]]:
        """Return how often each token occurs, and the number of tokens of each row that was counted."""
        size = len(cast(Any, self.model.get_input_embeddings()).weight)
        found, lengths = torch.zeros(size, dtype=torch.long), dict[int, int]()
        total = len(self.texts.sample)
        places = [number * total // min(COUNTED, total) for number in range(min(COUNTED, total))]
        for begin in range(0, len(places), 1000):
            some = places[begin : begin + 1000]
            rows = self.texts.sample.select(some)[:]
            for place, ids in zip(some, self._ids(rows, size), strict=True):
                found += torch.bincount(ids, minlength=size)
                lengths[place] = len(ids)
        deque(self._ids(self.texts.held[:], size), maxlen=0)
        return found, lengths

    def _ids(self, rows: Any, size: int) -> Iterator[Int[Tensor, " tokens"]]:
        """Yield the tokens of each row, of which the model knows `size`."""
        for row in self.texts.preprocessing.inputs(self.tokenizer, rows):
            ids = torch.as_tensor(row["input_ids"])
            if len(ids) and int(ids.max()) >= size:
                raise ValueError(
                    f"The tokenizer of {self.source.given} gives token {int(ids.max())}, but the model has embeddings "
                    f"for {size} tokens only. Give the tokenizer that it was trained with."
                )
            yield ids

    def _batches(self, rows: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Yield the inputs of some rows; rows of similar length share a batch."""
        loaded = Loaded(self.texts.sample, list(rows), "the sample")
        preprocessing = replace(self.texts.preprocessing, label_column=None)
        return (inputs for inputs, _ in Batches(self.head, preprocessing, self.tokenizer, loaded, BATCH))


def _check_budget(model: PreTrainedModel, recipe: Recipe) -> None:
    """Check that a file as small as the budget is worth making of `model`."""
    least = least_bytes(model, recipe.quantization.quant_exclude, {})
    if recipe.budget.bytes < least:
        raise ValueError(
            f"A budget of {recipe.budget.compress_budget_mb:g} MB is too small for this model: it leaves less than "
            f"{LEAST_BITS} bits per weight. Give at least {math.ceil(least / 1e4) / 100:g}, or start from a smaller "
            "model."
        )


def _sampled(lengths: dict[int, int]) -> list[int]:
    """Return evenly spaced rows, the shortest first: `ROWS`, or as many as have `TOKENS` tokens together."""
    places = list(lengths)
    count = min(ROWS, len(places))
    mean = sum(lengths.values()) / len(lengths)
    count = max(1, min(count, int(TOKENS / max(mean, 1))))
    chosen = [places[number * len(places) // count] for number in range(count)]
    return sorted(chosen, key=lambda place: lengths[place])


def _told(batches: Iterator[dict[str, Tensor]], count: int, tell: Tell) -> Iterator[dict[str, Tensor]]:
    """Yield the batches, and tell after the last what comes next."""
    yield from batches
    tell(f"Measured {count} batches. Choosing steps and rounding with error feedback...")
