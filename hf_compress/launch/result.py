"""The result folder of a run: built aside with report and card, and moved into place when it is complete."""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hf_compress.checkpoint.resume import last_complete_checkpoint
from hf_compress.documents import read_document
from hf_compress.export.formats import exported, write_formats, written
from hf_compress.hub.push import push
from hf_compress.launch.claim import claim, release
from hf_compress.report import records
from hf_compress.report.card import is_current, save_card
from hf_compress.report.report import REPORT_NAME, Report

FOLDER = "compressed"
UNFINISHED = ".compressed.unfinished"
PLAN_NAME = "plan.json"
RESUME = "--resume_from_checkpoint"


@dataclass(frozen=True)
class Plan:
    """The parts of a run's result. The plan is kept beside the unfinished result, so that another process can go on.

    Attributes:
        command: the command line of the run.
        formats: the formats that the model is written in besides the packed one.
        reported: whether report and card belong to the result.
        hub_id: the Hub repository to push to, if any.
        private: whether a newly created repository is private.
    """

    command: str
    formats: list[str] = field(default_factory=list)
    reported: bool = True
    hub_id: str | None = None
    private: bool = False


class Result:
    """The result of the run with the output folder `output`.

    `folder` is where it appears, whole or not at all. `aside` is where it is built.

    Example:
        >>> from hf_compress.launch.result import Result
        >>> Result("runs/sst2").folder.as_posix()
        'runs/sst2/compressed'
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self.folder = self.output / FOLDER
        self.aside = self.output / UNFINISHED / FOLDER

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
        _remove(self.aside.parent)
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

    def publish(self, plan: Plan, token: str | None = None) -> list[str]:
        """Do what is left once the scores are in the report: card, move into place, push. Return what was done.

        Raises:
            ValueError: the result could not be pushed. It is in place nevertheless, and `complete` pushes it.
        """
        done = []
        if self.aside.is_dir():
            if (self.aside / REPORT_NAME).is_file():
                done.append(f"Wrote the card: {save_card(self.aside).name}")
            try:
                self.aside.rename(self.folder)
            except OSError as error:
                self.check_free()  # Another process may have put its own result there meanwhile.
                raise ValueError(f"{self.aside} could not be moved to {self.folder}: {error.strerror}.") from error
            done.append(f"Moved the result to {self.folder}")
        if plan.hub_id is not None:
            done.append(f"Pushed it to {push(self.folder, plan.hub_id, private=plan.private, token=token)}")
        _remove(self.aside.parent)
        release(self.output)
        return done


def complete(output: str | Path, *, without_report: bool = False) -> list[str]:
    """Complete an interrupted result from its files alone, and return what was done, one sentence a step.

    Formats, card, move and push need nothing else. Scores need the run's script, with its data and metrics.

    Args:
        output: the output folder of the run.
        without_report: complete the result even if it was never scored. It then has no report and no card.

    Raises:
        ValueError: there is nothing to complete, or only the run's script can complete it. The message says how.

    Example:
        >>> from hf_compress.launch import complete
        >>> complete("runs/sst2")  # doctest: +SKIP
        ['Wrote the card: README.md', 'Moved the result to runs/sst2/compressed']
    """
    result = Result(output)
    if not result.output.is_dir():
        return _renew_card(result)
    claim(output)
    try:
        return _completed(result, without_report)
    finally:
        release(output)


def _completed(result: Result, without_report: bool) -> list[str]:
    plan = result.plan()
    if plan is None:
        return _renew_card(result)
    if not result.aside.is_dir():
        if not result.folder.is_dir():
            raise ValueError(f"The compressed model was not saved yet. {how_to_resume(result.output, plan.command)}")
        return result.publish(plan)
    result.check_free()
    scored = _is_report(result.aside)
    if plan.reported and not scored and not without_report:
        raise ValueError(
            f"The compressed model in {result.aside} has no scores yet, which only the run's own script can measure. "
            f"{how_to_resume(result.output, plan.command)} Or keep it without report and card: `--without-report`."
        )
    if not scored:
        (result.aside / REPORT_NAME).unlink(missing_ok=True)
    missing = [format.name for format in exported(plan.formats) if format.name not in written(result.aside)]
    done = [f"Wrote the format {name}" for name in write_formats(result.aside, missing)]
    # A card needs a report, and so does the Hub.
    return done + result.publish(plan if scored else replace(plan, hub_id=None))


def _renew_card(result: Result) -> list[str]:
    """Render the card of a finished result again if it is not what the report says."""
    if not result.folder.is_dir():
        raise ValueError(
            f"RUN_FOLDER must be the `--output_dir` of a run that was trained to its end; {result.output} has no "
            "result, finished or unfinished."
        )
    report = Report.load(result.folder) if (result.folder / REPORT_NAME).is_file() else None
    if report is None or is_current(result.folder):
        return [f"Nothing is left to do: {result.folder} is complete"]
    return [f"Wrote the card: {save_card(result.folder)}"]


def _is_report(folder: Path) -> bool:
    """Whether the folder holds a whole report. A process that was killed may leave a part of one."""
    try:
        Report.load(folder)
    except ValueError:
        return False
    return True


def _remove(path: Path) -> None:
    """Remove what an earlier attempt left at `path`. A link is removed, and what it points to is kept."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def how_to_resume(output: str | Path, command: str) -> str:
    """Say how the script of a run completes its result, in a sentence with the command."""
    if last_complete_checkpoint(output) is None:
        return f"Run it again: `{command}`. No checkpoint was saved, so this trains again."
    resumes = "" if RESUME in command else f" {RESUME} last"
    return f"Run it again: `{command}{resumes}`. It does not train again."
