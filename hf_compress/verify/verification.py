"""What a verification found: one check for each thing that a report says, and one verdict over all."""

from dataclasses import dataclass, field
from typing import Any

from hf_compress.report.agreement import DIFFERS, TRUE, UNCHECKED, Check, Verdict
from hf_compress.report.intervals import Interval
from hf_compress.report.records import encode

SCHEMA = "hf_compress.verification/1"
SCORE, EXTRA_SCORE = "score", "score on further rows"


@dataclass(frozen=True)
class Remeasured:
    """The scores of the model, measured again on rows of a dataset.

    Args:
        data: the rows, in words.
        rows: how many there are.
        reported: the scores of these rows by the report: of its predictions if it keeps them, else of all its rows.
        measured: the scores of the same names.
        agreement: the share of predictions that are those that the report keeps; None if it keeps none of these rows.
        interval: the interval of the reported main score.

    Example:
        >>> from hf_compress.verify import Remeasured
        >>> found = Remeasured("nyu-mll/glue sst2 validation", 872, {"accuracy": 0.856}, {"accuracy": 0.856}, 1.0)
        >>> found.measured["accuracy"] - found.reported["accuracy"]
        0.0
    """

    data: str
    rows: int
    reported: dict[str, float]
    measured: dict[str, float]
    agreement: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify_folder`.

    Args:
        model: the path or repository, as given.
        checks: one for each thing that the report says.
        remeasured: the scores that were measured again; None if they could not be.
        remeasured_extra: the same for the second evaluation set; None if there is none.

    Example:
        >>> from hf_compress.verify import verify_folder
        >>> verification = verify_folder("someone/minilm-sst2", data=Data(rows=100))  # doctest: +SKIP
        >>> verification.verdict, verification.status  # doctest: +SKIP
        ('true', 0)
    """

    model: str
    checks: list[Check] = field(default_factory=list)
    remeasured: Remeasured | None = None
    remeasured_extra: Remeasured | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict over all checks.

        "differs" if anything differs; "true" if nothing does and the scores of all evaluation sets were measured
        again; else "cannot be checked".
        """
        if any(check.verdict == DIFFERS for check in self.checks):
            return DIFFERS
        scores = [check.verdict for check in self.checks if check.name in (SCORE, EXTRA_SCORE)]
        return TRUE if scores and set(scores) == {TRUE} else UNCHECKED

    @property
    def status(self) -> int:
        """The exit status of `hf-compress verify`: 0 for "true", 1 for "differs", 2 for "cannot be checked"."""
        return {TRUE: 0, DIFFERS: 1, UNCHECKED: 2}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """The verification as JSON values, its schema first."""
        encoded: dict[str, Any] = encode(self, "verification")
        return {"schema": SCHEMA, "verdict": self.verdict, "status": self.status, **encoded}
