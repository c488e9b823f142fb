"""Facts that a report keeps beside its scores: an example, files, the speed, the dense model, the control."""

from dataclasses import dataclass, field
from typing import Any

from hf_compress.report.intervals import Interval
from hf_compress.report.latency import Ratio


@dataclass(frozen=True)
class Example:
    """An input and what the model of the report answers to it.

    Args:
        inputs: one text, or two texts that the model reads as a pair.
        output: what `transformers.pipeline` returns for it, scores rounded to four digits.

    Example:
        >>> from hf_compress.report.facts import Example
        >>> Example(["A quiet, warm film."], [{"label": "positive", "score": 0.9873}]).inputs
        ['A quiet, warm film.']
    """

    inputs: list[str]
    output: list[dict[str, Any]]


@dataclass(frozen=True)
class Steps:
    """How the weights are stored that have fixed steps.

    Args:
        bits_per_weight: average bits of such a weight in the packed file, with its share of the steps.
        feedback: whether linear layers were first rounded with error feedback. Weights beside an adapter were not.

    Example:
        >>> from hf_compress.report.facts import Steps
        >>> Steps(bits_per_weight=2.43, feedback=True).bits_per_weight
        2.43
    """

    bits_per_weight: float
    feedback: bool


@dataclass(frozen=True)
class FileFacts:
    """One file of a finished folder.

    Args:
        bytes: its length.
        sha256: of its content, in hexadecimal.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Speed:
    """The speed-up that a run was to reach (`--compress_speedup`), against the whole model in the same number format.

    Args:
        target: how many times faster the graph was to be.
        predicted: what was expected of the chosen numbers of groups, from times measured before training.
        measured: of the finished graph.
        shape: that of the batch, in words.
        runtime: what ran the graphs, with its version and threads.
        machine: the processor.

    Example:
        >>> from hf_compress.report.facts import Speed
        >>> from hf_compress.report.latency import Ratio
        >>> measured = Ratio(1.9, interval=[1.8, 1.95], quartiles=[1.8, 2.0])
        >>> Speed(2.0, 2.02, measured, "1 x 128 tokens", "ONNX Runtime 1.23, 1 thread", "a CPU, 2 cores").missed
        True
    """

    target: float
    predicted: float
    measured: Ratio
    shape: str
    runtime: str
    machine: str

    @property
    def missed(self) -> bool:
        """Whether the whole interval of the measurement lies below the target."""
        return self.measured.interval[1] < self.target


@dataclass(frozen=True)
class Baseline:
    """What the dense model is, with which the compressed model is compared.

    Args:
        start: whether training started from it. Otherwise it was trained apart from the same base model.
        name: its Hub id or the name of its folder, if it has one.
        epochs: how long it was trained for the task; None if unknown.
        steps: the same in optimizer steps.

    Example:
        >>> from hf_compress.report.facts import Baseline
        >>> Baseline(start=True, epochs=2.0).epochs
        2.0
    """

    start: bool
    name: str | None = None
    epochs: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Control:
    """The control: the same training without any method, measured on the same rows.

    Args:
        name: the name of its folder.
        steps: optimizer steps of its training.
        scores: its scores, by metric.
        comparison: the paired difference of each score, compressed - control, with its interval, by metric.

    Example:
        >>> from hf_compress.report.facts import Control
        >>> Control("sst2-dense", 1125, {"accuracy": 0.91}).scores["accuracy"]
        0.91
    """

    name: str
    steps: int
    scores: dict[str, float]
    comparison: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtraSet:
    """A second evaluation set: further labelled rows that the training has not seen.

    All fields but the first four are those of the report, measured on these rows.

    Args:
        split: the split that the rows are from.
        rows: how many rows.
        part: which part of the split they are, if it is known, as `datasets` writes it ("train[12000:22000]").
        split_rows: rows of the whole split, if known.
        dense: scores of the dense model; None if it was not evaluated on these rows.
        compressed: scores of the compressed model.
        predictions: the file name of the predictions for each row; None if there are none.
        intervals: the interval of each score of the compressed model, by metric.
        comparison: the paired difference of each score, compressed - dense, by metric.
        without_interval: why a metric has no interval, by metric.
        control: the control on these rows; None if there is none.
        without_control: why the control was not compared on these rows, in one sentence.

    Example:
        >>> from hf_compress.report.facts import ExtraSet
        >>> ExtraSet("train", 10000, "train[12000:22000]", 67349, None, {"accuracy": 0.91}).rows
        10000
    """

    split: str
    rows: int
    part: str | None
    split_rows: int | None
    dense: dict[str, float] | None
    compressed: dict[str, float]
    predictions: str | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    comparison: dict[str, Interval] = field(default_factory=dict)
    without_interval: dict[str, str] = field(default_factory=dict)
    control: Control | None = None
    without_control: str | None = None
