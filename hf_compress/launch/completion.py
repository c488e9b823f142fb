"""Completing the result of a run from its files alone: card, formats and push, without its script and its data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hf_compress.export.formats import FORMATS
from hf_compress.failures import reason
from hf_compress.launch.claim import claim, release
from hf_compress.launch.format_steps import FormatSteps, record
from hf_compress.launch.result import FINISH, Plan, Result, how_to_resume
from hf_compress.launch.speed_goal import add_speed
from hf_compress.report.card import is_current, save_card
from hf_compress.report.gate import exit_status
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.verify.scoring import score_folder


def complete(
    output: str | Path,
    *,
    without_report: bool = False,
    token: str | None = None,
    tell: Callable[[str], object] = str,
) -> list[str]:
    """Complete an interrupted or failed result from its files alone, and return what was done, one sentence a step.

    Card, move, formats and push need nothing else. Formats that failed before are tried again. Scores of the packed
    file need the run's script, with its data and metrics. Formats that are written here are scored if the report names
    a dataset that can be loaded, and its preprocessing; otherwise they have no scores.

    Args:
        output: the output folder of the run.
        without_report: complete the result even if it was never scored. It then has no report and no card.
        token: of the Hub. The default is that of `hf auth login`.
        tell: is told of each step when it is done.

    Raises:
        ValueError: there is nothing to complete, only the run's script can complete it, a format failed again, or the
            push failed. The message says how to go on. What was done before stays.

    Example:
        >>> from hf_compress.launch import complete
        >>> complete("runs/sst2")  # doctest: +SKIP
        ['Wrote the format onnx']
    """
    result = Result(output)
    if result.output.is_dir():
        claim(output)
    completion = _Completion(result, tell)
    try:
        completion.run(without_report, token)
    finally:
        release(output)
    return completion.done


def status_of(output: str | Path) -> int:
    """Return the exit status for the result of a run: 3 if it is a regression, else 0."""
    result = Result(output)
    return exit_status(Report.load(result.folder) if result.scored(result.folder) else None)


class _Completion:
    """The steps of `complete`, and what was done so far."""

    def __init__(self, result: Result, tell: Callable[[str], object]) -> None:
        self.result, self._tell = result, tell
        self.done: list[str] = []

    def run(self, without_report: bool, token: str | None) -> None:
        """Do what is left."""
        result = self.result
        plan = result.plan() or self._plan_of_report()
        if result.folder.is_dir() and not result.aside.is_dir():
            self._renew_card()
        else:
            self._place(plan, without_report)
        missing = result.missing_formats(plan)
        failed = FormatSteps(result.folder, result.scratch).add(missing, self._did)
        if result.scored(result.folder):
            for name in missing:
                if name not in failed:
                    self._score(name, token)
            if add_speed(result.folder):
                self._did("Measured the speed-up")
        for step in result.conclude(plan, token):
            self._did(step)
        if failed:
            raise ValueError(said_of_failures(result, failed))
        if not self.done:
            self._did(f"Nothing is left to do: {result.folder} is complete")

    def _did(self, step: str) -> None:
        self.done.append(step)
        self._tell(step)

    def _score(self, name: str, token: str | None) -> None:
        """Score a format on the rows that the report names, if they and their preprocessing are known."""
        folder = self.result.folder
        try:
            scored = score_folder(folder, format=name, token=token)
        except FORMATS[name].failures() as error:
            self._did(f"Did not score the format {name}: {reason(error)}")
            return
        record(folder, name, replace(Report.load(folder).formats[name], scores=scored.scores), None)
        self._did(f"Scored the format {name} on {scored.name}")

    def _plan_of_report(self) -> Plan:
        """Return the plan of a result that has none left: to write the formats that failed."""
        folder = self.result.folder
        if not folder.is_dir():
            raise ValueError(
                f"RUN_FOLDER must be the `--output_dir` of a run that was trained to its end; {self.result.output} "
                "has no result, finished or unfinished."
            )
        report = Report.load(folder) if (folder / REPORT_NAME).is_file() else None
        if report is None:
            return Plan(command="", reported=False)
        return Plan(command="", formats=[*report.failed_formats], max_drop=report.max_drop)

    def _place(self, plan: Plan, without_report: bool) -> None:
        result = self.result
        if not result.aside.is_dir():
            raise ValueError(f"The compressed model was not saved yet. {how_to_resume(result.output, plan.command)}")
        result.check_free()
        report = Report.load(result.aside) if result.scored(result.aside) else None
        if plan.reported and report is None and not without_report:
            raise ValueError(
                f"The compressed model in {result.aside} has no scores yet, which only the run's own script can "
                f"measure. {how_to_resume(result.output, plan.command)} Or keep it without report and card: "
                "`--without-report`."
            )
        if report is None:
            (result.aside / REPORT_NAME).unlink(missing_ok=True)
        result.place(report)
        self._did(f"Moved the result to {result.folder}" + (", with its card" if report is not None else ""))

    def _renew_card(self) -> None:
        """Render the card of a finished result again if it is not what the report says."""
        folder = self.result.folder
        if self.result.scored(folder) and not is_current(folder):
            self._did(f"Wrote the card: {save_card(folder)}")


def said_of_failures(result: Result, failed: dict[str, str]) -> str:
    """Say which formats failed, why, and how to try again."""
    reasons = " ".join(f"`{name}` could not be written: {why.rstrip('.')}." for name, why in failed.items())
    return (
        f"The compressed model is in {result.folder}, but not in every format. {reasons} Fix that, then run "
        f"`{FINISH} {result.output}` to try again, without training."
    )
