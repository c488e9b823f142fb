"""The result folder of a run: built aside, moved into place with report and card, and pushed."""

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_compress.checkpoint.resume import last_complete_checkpoint
from hf_compress.documents import read_document
from hf_compress.export.formats import exported, written
from hf_compress.hub.push import push
from hf_compress.launch.claim import FOLDER, claim, release
from hf_compress.launch.format_steps import remove
from hf_compress.report import records
from hf_compress.report.card import save_card
from hf_compress.report.gate import REGRESSION, judged, what_to_try
from hf_compress.report.report import Report

UNFINISHED = ".compressed.unfinished"
PLAN_NAME = "plan.json"
RESUME = "--resume_from_checkpoint"
FINISH = "hf-compress finish"


@dataclass(frozen=True)
class Plan:
    """The parts of a run's result. The plan is kept beside the unfinished result, so that another process can go on.

    Attributes:
        command: the command line of the run.
        formats: the formats that the model is written in besides the packed one.
        reported: whether report and card belong to the result.
        hub_id: the Hub repository to push to, if any.
        private: whether a newly created repository is private; None leaves that to the default of its owner.
        revision: the branch to push to; None is the main branch.
        max_drop: the limit for the gate before the push; None for no gate.
    """

    command: str
    formats: list[str] = field(default_factory=list)
    reported: bool = True
    hub_id: str | None = None
    private: bool | None = None
    revision: str | None = None
    max_drop: float | None = None


class Result:
    """The result of the run with the output folder `output`.

    `folder` is where it appears, whole or not at all. `aside` is where it is built, and `scratch` where a format is.

    Example:
        >>> from hf_compress.launch.result import Result
        >>> Result("runs/sst2").folder.as_posix()
        'runs/sst2/compressed'
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self.folder = self.output / FOLDER
        self.aside = self.output / UNFINISHED / FOLDER
        self.scratch = self.output / UNFINISHED / "format"

    def check_free(self) -> None:
        """Refuse an output folder that already holds a result.

        Raises:
            ValueError: there is a result, or something that is not an empty folder, in its place.
        """
        if not self.folder.exists() and not self.folder.is_symlink():
            return
        if self.folder.is_dir() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            return
        raise ValueError(
            f"`--output_dir {self.output}` already holds a result in {self.folder}. Choose another output folder, or "
            "move that result away."
        )

    def begin(self, plan: Plan) -> None:
        """Start the result from nothing: remove what an interrupted attempt left, and write the plan.

        Raises:
            ValueError: there is a result already, or another process builds one.
        """
        self.check_free()
        claim(self.output)
        remove(self.aside.parent)
        self.aside.parent.mkdir(parents=True)
        partial = self.aside.parent / f".{PLAN_NAME}"
        partial.write_text(json.dumps(asdict(plan), indent=2) + "\n", "utf-8")
        partial.rename(self.aside.parent / PLAN_NAME)

    def plan(self) -> Plan | None:
        """Return the plan of an unfinished result; None if no attempt wrote one."""
        path = self.aside.parent / PLAN_NAME
        if not path.is_file():
            return None
        plan: Plan = records.decode(Plan, read_document(path), str(path))
        return plan

    def scored(self, folder: Path) -> bool:
        """Return whether `folder` holds a whole report. A process that was killed may leave a part of one."""
        try:
            Report.load(folder)
        except ValueError:
            return False
        return True

    def place(self, report: Report | None) -> Path:
        """Move what was built aside into place, with `report` and its card if there is one, and return the folder.

        Raises:
            ValueError: another process has put a result there.
        """
        if report is not None:
            report.save(self.aside)
            save_card(self.aside)
        try:
            self.aside.rename(self.folder)
        except OSError as error:
            self.check_free()  # Another process may have put its own result there meanwhile.
            raise ValueError(f"{self.aside} could not be moved to {self.folder}: {error.strerror}.") from error
        return self.folder

    def missing_formats(self, plan: Plan) -> list[str]:
        """Return the formats of the plan that the finished folder lacks, or that its report does not know."""
        there = Report.load(self.folder).formats if self.scored(self.folder) else written(self.folder)
        return [format.name for format in exported(plan.formats) if format.name not in there]

    def conclude(self, plan: Plan, token: str | None = None) -> list[str]:
        """Do what is left after the formats: judge, push, and forget the plan. Return what was done, in sentences.

        The plan is kept if a format is missing, so that it can be tried again.

        Raises:
            ValueError: the result could not be pushed. It is in place nevertheless, and `complete` pushes it.
        """
        done = []
        try:
            report = self._judged(plan) if self.scored(self.folder) else None
            if report is not None and report.verdict == REGRESSION:
                kept = f"The model is kept in {self.folder}" + ("" if plan.hub_id is None else ", and not pushed")
                done.append(f"{REGRESSION}: {' '.join(report.reasons)} {kept}. {what_to_try(report)}")
            elif report is not None and plan.hub_id is not None:
                address = push(self.folder, plan.hub_id, private=plan.private, revision=plan.revision, token=token)
                done.append(f"Published at {address}")
            if not self.missing_formats(plan):
                remove(self.aside.parent)
        finally:
            release(self.output)
        return done

    def _judged(self, plan: Plan) -> Report:
        """Return the report with the verdict of the gate, which is saved with it."""
        report = Report.load(self.folder)
        judgement = report if plan.max_drop is None else judged(report, plan.max_drop)
        if judgement != report:
            judgement.save(self.folder)
            save_card(self.folder)
        return judgement

    def how_to_go_on(self, command: str) -> str:
        """Say how an unfinished result is completed, in a sentence with the command."""
        if self.folder.is_dir() or self.scored(self.aside):
            return f"Run `{FINISH} {shlex.quote(str(self.output))}`. It does not train again."
        return how_to_resume(self.output, command)


def how_to_resume(output: str | Path, command: str) -> str:
    """Say how the script of a run completes its result, in a sentence with the command."""
    if last_complete_checkpoint(output) is None:
        return f"Run it again: `{command}`. No checkpoint was saved, so this trains again."
    resumes = "" if RESUME in command else f" {RESUME} last"
    return f"Run it again: `{command}{resumes}`. It does not train again."
