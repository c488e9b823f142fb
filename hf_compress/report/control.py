"""A control: the folder of the same training without any method, and what it predicted for the same rows."""

from dataclasses import dataclass
from pathlib import Path

from hf_compress.redaction import redact
from hf_compress.report.comparing import ControlRows
from hf_compress.report.extra_set import on_extra
from hf_compress.report.facts import Control
from hf_compress.report.predictions import COMPRESSED
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.report.rescoring import stored_outputs
from hf_compress.report.variants import label

HOW = "Run the same command with `--compress_formats packed` in place of the flags that compress, into another folder"


@dataclass(frozen=True)
class ControlRun:
    """The finished folder of a control.

    Args:
        name: of its folder.
        main: its predictions on its evaluation set.
        extra: the same on its second evaluation set; None if it has none.
    """

    name: str
    main: ControlRows
    extra: ControlRows | None

    @classmethod
    def read(cls, folder: str | Path) -> "ControlRun":
        """Return the control in `folder`: the output folder of its run, or the folder `compressed` in it.

        Raises:
            ValueError: there is no report, a method was used, or the report keeps no predictions.

        Example:
            >>> from hf_compress.report.control import ControlRun
            >>> ControlRun.read("runs/sst2-control").main.outputs.rows  # doctest: +SKIP
            872
        """
        given = Path(folder)
        found = given if (given / REPORT_NAME).is_file() else given / "compressed"
        if not (found / REPORT_NAME).is_file():
            raise ValueError(
                f"`--compress_control` must be the folder of a finished control, with {REPORT_NAME}; {folder} has "
                f"none. {HOW}."
            )
        report = Report.load(found)
        if report.recipe.name != "dense" or report.vocabulary is not None:
            raise ValueError(
                "`--compress_control` must be a training without any method; the model in "
                f"{folder} was compressed ({report.recipe.name}). {HOW}."
            )
        name, extra = redact(label(found).removesuffix("/compressed")), on_extra(report)
        return cls(name, _rows(found, report, name), None if extra is None else _rows(found, extra, name))


def _rows(folder: Path, report: Report, name: str) -> ControlRows:
    """Return what the control predicted for the rows of `report`."""
    if report.predictions is None:
        why = report.without_interval.get(report.main_metric, "")
        raise ValueError(
            f"`--compress_control` must keep the predictions of its rows; {folder} has none. {why} {HOW}."
        )
    rows, outputs = stored_outputs(folder, report)
    return ControlRows(Control(name, report.train_steps, report.compressed), rows, outputs[COMPRESSED])
