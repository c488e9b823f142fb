"""The golden reports: `report.json` of this folder, and what it would be for other methods, heads and folders.

`python -m tests.golden.reports` writes their cards into `tests/golden/cards`. Read the difference in git.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_compress.distill import DistillationArguments
from hf_compress.goals import BudgetArguments
from hf_compress.models.shares import Shares
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report.card import render
from hf_compress.report.facts import Control, Example, ExtraSet, FileFacts, Steps
from hf_compress.report.gate import judged
from hf_compress.report.intervals import Interval
from hf_compress.report.latency import Latency, Ratio, Timing, Variant
from hf_compress.report.preprocessing import Preprocessing
from hf_compress.report.report import DatasetFacts, FormatFacts, Report
from hf_compress.report.structure import Structure

FOLDER = Path(__file__).parent
CARDS = FOLDER / "cards"


def golden() -> Report:
    """Return the report of this folder."""
    return Report.load(FOLDER)


def golden_reports() -> dict[str, Report]:
    """Return all golden reports by the names of their cards."""
    others = {
        "pushed": _pushed(),
        "plain": _plain(),
        "refused": _refused(),
        "budget": _budget(),
        "further": _further(),
        "structured": _structured(),
        "convolutions": _convolutions(),
    }
    return _subsets() | _heads() | others


def _convolutions() -> Report:
    """A model with convolutions, one of which is left alone."""
    report = golden()
    left = {"wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1": 4_718_592}
    touched = {
        "pruned": Shares(89_215_488, 60_000_000, 94_371_712, 80_000_000, convolutions=7, others=left),
        "quantized": Shares(89_215_488, 60_000_000, 94_371_712, 80_000_000, convolutions=7, others=left),
    }
    return replace(report, touched=touched)


def _subsets() -> dict[str, Report]:
    """The eight subsets of distillation, pruning and quantization."""
    report, found = golden(), {}
    for distilled in (False, True):
        for pruned in (False, True):
            for quantized in (False, True):
                recipe = Recipe(
                    report.recipe.distillation if distilled else DistillationArguments(),
                    report.recipe.pruning if pruned else PruningArguments(),
                    report.recipe.quantization if quantized else QuantizationArguments(),
                )
                found[recipe.name] = replace(report, recipe=recipe, teacher=report.teacher if distilled else None)
    return found


def _heads() -> dict[str, Report]:
    """One report for each kind of task that people push."""
    return {
        "regression": _head(
            "regression",
            "stsb",
            {"pearson": 0.8712, "spearmanr": 0.8698},
            labels=None,
            columns=["sentence1", "sentence2"],
            example=Example(["A man plays a flute.", "Someone plays music."], [{"label": "LABEL_0", "score": 3.2184}]),
        ),
        "tagging": _head(
            "token classification",
            "conll2003",
            {"f1": 0.9012, "accuracy": 0.9812},
            model_class="BertForTokenClassification",
            auto_class="AutoModelForTokenClassification",
            pipeline_tag="token-classification",
            labels={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"},
            columns=["tokens"],
            kind="words",
            units="entities",
            example=Example(
                ["Ada Lovelace lived in London."],
                [
                    {"entity_group": "PER", "score": 0.9971, "word": "ada lovelace", "start": 0, "end": 12},
                    {"entity_group": "LOC", "score": 0.9984, "word": "london", "start": 22, "end": 28},
                ],
            ),
        ),
        "multi-label": _head(
            "multi-label classification",
            "emotions",
            {"f1": 0.6104},
            labels={0: "joy", 1: "anger", 2: "surprise"},
            columns=["text"],
            example=Example(
                ["I did not expect that, how lovely!"],
                [
                    {"label": "surprise", "score": 0.9312},
                    {"label": "joy", "score": 0.8841},
                    {"label": "anger", "score": 0.0103},
                ],
            ),
        ),
        # The nearest that we compress to a model for retrieval: its body, trained as a masked language model.
        "retrieval": _head(
            "masked language modelling",
            "passages",
            {"loss": 2.1044},
            model_class="BertForMaskedLM",
            auto_class="AutoModelForMaskedLM",
            pipeline_tag="fill-mask",
            labels=None,
            columns=["text"],
            example=Example(
                ["The library opens at [MASK]."],
                [{"score": 0.4107, "token": 11501, "token_str": "noon", "sequence": "the library opens at noon."}],
            ),
        ),
    }


def _head(
    head: str,
    task: str,
    scores: dict[str, float],
    *,
    labels: dict[int, str] | None,
    columns: list[str],
    example: Example,
    kind: str = "text",
    units: str = "rows",
    **others: Any,
) -> Report:
    main = next(iter(scores))
    dataset = DatasetFacts(
        f"someone/{task}",
        None,
        "train",
        12000,
        "validation",
        1500,
        hub_id=f"someone/{task}",
        preprocessing=Preprocessing(kind, columns, "label", 128, "longest_first"),
    )
    paired = Interval(-0.004, -0.012, 0.005, 0.95, f"paired bootstrap, 2,000 resamples of {units}", units, 1500)
    return replace(
        golden(),
        head=head,
        task=task,
        dataset=dataset,
        main_metric=main,
        compressed=scores,
        dense={name: score + 0.004 for name, score in scores.items()},
        teacher=None,
        labels=labels,
        example=example,
        intervals={},
        comparison={main: paired},
        max_drop=None,
        verdict=None,
        reasons=[],
        **others,
    )


def _pushed() -> Report:
    """A model with every other format, measured latency, and words of its author, on the Hub."""
    report = golden()
    timings = [
        Timing("torch-fp32", 1, 64, 0.02, [0.019, 0.021], Ratio(1.0, [1.0, 1.0], [1.0, 1.0])),
        Timing("onnxruntime", 1, 64, 0.008, [0.0079, 0.0082], Ratio(2.5, [2.4, 2.6], [2.4, 2.6])),
    ]
    variants = [Variant("torch-fp32", 0.4, 90868376), Variant("onnxruntime", 0.1, 23146217)]
    shared = {"accuracy": 0.856}
    return replace(
        report,
        hub_id="someone/minilm-sst2-small",
        formats={
            "onnx": FormatFacts(23146217, 0.0123, shared),
            "openvino": FormatFacts(23301218, 0.0131, shared, native_deviation=0.081),
            "compressed-tensors": FormatFacts(58714112, 0.0002, {}),
        },
        latency=Latency("Some CPU @ 2.00GHz, 2 cores", "torch-fp32", 2, 50, {}, variants, timings),
        files=report.files | {"hf_compress_loading.py": FileFacts(9120, "ab" * 32)},
        emissions_kg=0.0213,
        author={
            "title": "MiniLM for film reviews, 16 MB",
            "language": ["en"],
            "tags": ["films"],
            "text": "Made for the reviews of *our* cinema.",
        },
    )


def _plain() -> Report:
    """A model of which little is known: local data, no labels, no dense model."""
    report = golden()
    return replace(
        report,
        base_model="runs/dense",
        base_model_hub_id=None,
        base_model_revision=None,
        task="reviews",
        dataset=DatasetFacts("reviews.csv", None, "train", 900, "validation", 100),
        dense=None,
        teacher=None,
        labels=None,
        example=None,
        baseline=None,
        license=None,
        languages=[],
        curves={},
        card_curve=None,
        intervals={},
        comparison={},
        without_interval={"accuracy": "The predictions of the rows do not reproduce it."},
        max_drop=None,
        verdict=None,
        reasons=[],
    )


def _refused() -> Report:
    """A model that lost too much, on a part of a split, and lacks a format that was asked for."""
    report = golden()
    return replace(
        report,
        dataset=replace(report.dataset, eval_rows=500, eval_part="validation[:500]"),
        compressed={"accuracy": 0.81, "loss": 0.52},
        comparison={"accuracy": Interval(-0.0432, -0.061, -0.024, 0.95, "paired bootstrap", "rows", 500, 0.0002)},
        failed_formats={"onnx": "The graph computes something else: its logits deviate by 0.4 of their spread."},
        verdict="REGRESSION",
        reasons=[
            "The accuracy fell by 4.32 points; at most 1 point is allowed.",
            "The format `onnx` was not written.",
        ],
    )


def _budget() -> Report:
    """A model within a budget: steps by sensitivity, without zeros."""
    report = golden()
    recipe = Recipe(
        report.recipe.distillation,
        quantization=replace(report.recipe.quantization, quant_step=0.02134),
        budget=BudgetArguments(compress_budget_mb=7.0),
    )
    parts = {
        name: replace(part, packed_bytes=packed)
        for (name, part), packed in zip(report.size.parts.items(), (3460321, 3462811, 3080), strict=True)
    }
    size = replace(report.size, packed_bytes=6937644, parts=parts, analytic_bytes=22713220, entropy_bytes=6921337)
    command = "hf-compress run train.py --output_dir out --distill_teacher self --compress_budget_mb 7"
    return replace(report, recipe=recipe, size=size, steps=Steps(2.434, feedback=True), command=command)


def _structured() -> Report:
    """Return the report of a model without half of its neurons and heads."""
    report = golden()
    pruning = replace(report.recipe.pruning, prune_sparsity=0.5, prune_pattern="neurons+heads")
    left = [Structure("neurons", [1536] * 6, [768] * 6), Structure("heads", [12] * 6, [6] * 6)]
    return replace(report, recipe=replace(report.recipe, pruning=pruning), achieved_sparsity=0.5, structure=left)


def _further() -> Report:
    """A model with a second evaluation set, and a control that was measured on both."""
    report = golden()
    method = "paired bootstrap, 2,000 resamples of rows"
    extra = ExtraSet(
        split="train",
        rows=10_000,
        part=None,
        split_rows=67_349,
        dense={"accuracy": 0.8617, "loss": 0.3904},
        compressed={"accuracy": 0.8641, "loss": 0.3811},
        predictions="predictions-extra.parquet",
        intervals={"accuracy": Interval(0.8641, 0.8573, 0.8707, 0.95, "Wilson score interval", "rows", 10_000)},
        comparison={"accuracy": Interval(0.0024, -0.0009, 0.0057, 0.95, method, "rows", 10_000, 0.16)},
        control=Control(
            "sst2-control",
            1125,
            {"accuracy": 0.8688, "loss": 0.3795},
            {"accuracy": Interval(-0.0047, -0.0081, -0.0014, 0.95, method, "rows", 10_000, 0.0062)},
        ),
    )
    control = Control(
        "sst2-control",
        1125,
        {"accuracy": 0.8578, "loss": 0.4093},
        {"accuracy": Interval(-0.0018, -0.0115, 0.008, 0.95, method, "rows", 872, 0.78)},
    )
    return judged(replace(report, control=control, extra=extra), 1.0)


def write_cards() -> None:
    """Write the cards of all golden reports."""
    CARDS.mkdir(exist_ok=True)
    for old in CARDS.glob("*.md"):
        old.unlink()
    for name, report in golden_reports().items():
        (CARDS / f"{name}.md").write_text(render(report), "utf-8")


if __name__ == "__main__":
    write_cards()
