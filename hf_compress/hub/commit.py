"""The one commit of a push: made again until it stands, and never twice."""

import warnings
from hashlib import sha256
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, errors
from huggingface_hub.utils.sha import git_hash

from hf_compress.hub.changes import Changes, changes
from hf_compress.hub.patience import TRIES_OF_UPLOADS, Patience, status_of
from hf_compress.hub.preflight import Target, holds_another_model
from hf_compress.hub.readme import united
from hf_compress.hub.repository import Snapshot, snapshot
from hf_compress.report.contents import CARD_NAME
from hf_compress.report.eval_results import RESULTS_NAME, render_results
from hf_compress.report.report import REPORT_NAME, Report

STALE_PARENT = 412
STALE_TRIES = 3
# The Hub stores longer files as large ones, which it knows by their SHA-256 alone.
LARGEST_REGULAR = 10_000_000
# Goes before a .gitignore of the repository, which would leave files out of the commit without a word.
IGNORE_NOTHING = "# Nothing is ignored.\n"


class Commit:
    """The commit that makes a repository hold a folder.

    Args:
        target: where it goes.
        folder: what it publishes.
        report: of the folder.
        message: of the commit.
        replace: whether foreign files that clash, and another text in README.md, are given up.
        patience: of the push.

    Example:
        >>> from hf_compress.hub.commit import Commit
        >>> Commit(target, folder, report, "Add a model", False, patience).make()  # doctest: +SKIP
        ('https://huggingface.co/someone/minilm-sst2/commit/3f1c...', Changes(added=[...]))
    """

    def __init__(
        self, target: Target, folder: Path, report: Report, message: str, replace: bool, patience: Patience
    ) -> None:
        self.target, self.folder, self.report = target, folder, report
        self.message, self.replace, self.patience = message, replace, patience
        self.hashes = {name: self._hashes(name) for name in report.files}

    def make(self) -> tuple[str, Changes]:
        """Make the commit, and return its address and what it changes.

        Before each try the repository is looked at. If it holds the folder after a try that failed, the commit was
        made, and only its answer was lost.

        Raises:
            ValueError: the repository holds another model, or others changed the same files meanwhile.
        """
        first: Snapshot | None = None
        planned: Changes | None = None
        stale = 0
        while True:
            now = self._look()
            plan, made = self._plan(now)
            if plan.nothing:
                return self._address(f"commit/{now.commit}"), planned or plan
            if planned is not None and first is not None:
                if self.target.create_pr and (number := self._pull_request()):
                    return self._address(f"discussions/{number}"), planned
                self._check_undisturbed(planned, first, now)
            first, planned = first or now, plan
            added = self._upload(plan, made)
            with self.patience.failing(f"commit to {self.target.repo_id}"):
                try:
                    return self._commit(now, [*added, *map(CommitOperationDelete, plan.removed)]), plan
                except errors.HfHubHTTPError as error:
                    if status_of(error) != STALE_PARENT or (stale := stale + 1) == STALE_TRIES:
                        raise

    def _look(self) -> Snapshot:
        """What the repository holds now."""
        repo_id, revision = self.target.repo_id, self.target.revision
        now = snapshot(self.target.client, repo_id, revision, self.patience)
        if now is None:
            raise ValueError(f"{repo_id} has no revision {revision}. Give `--revision` the name of a branch.")
        return now

    def _plan(self, now: Snapshot) -> tuple[Changes, dict[str, bytes]]:
        """What is to be changed in the repository, and the files that are made for it."""
        here = (self.folder / CARD_NAME).read_text("utf-8")
        made = {
            REPORT_NAME: self.report.to_json().encode(),
            CARD_NAME: united(self.report, here, now.readme, replace=self.replace).encode(),
        }
        if results := render_results(self.report):
            made[RESULTS_NAME] = results.encode()
        files = self.hashes | {name: _hashes_of(content) for name, content in made.items()}
        plan = changes(files, now.files, now.ours, replace=self.replace)
        if plan.clashing:
            raise ValueError(
                f"{holds_another_model(self.target.repo_id, plan.clashing)} Choose another repository, or pass "
                "`--replace` to overwrite or remove them in the same commit."
            )
        return plan, made

    def _check_undisturbed(self, planned: Changes, first: Snapshot, now: Snapshot) -> None:
        """Refuse to go on if somebody else changed files of ours since the first look. README.md is merged again."""
        ours = sorted({*self.hashes, REPORT_NAME, *planned.removed})
        touched = [path for path in ours if first.files.get(path) != now.files.get(path)]
        if touched:
            raise ValueError(
                f"Somebody else changed {', '.join(touched)} of {self.target.repo_id} during this push, so nothing "
                f"was published. Look at {self._address(f'commit/{now.commit}')}, then push again."
            )

    def _upload(self, plan: Changes, made: dict[str, bytes]) -> list[CommitOperationAdd]:
        """Upload the large files that are new; nobody sees them before a commit names them."""
        client, repo_id = self.target.client, self.target.repo_id
        added = [self._addition(name, made) for name in (*plan.added, *plan.changed)]
        self.patience(
            lambda: client.preupload_lfs_files(
                repo_id,
                added,
                revision=self.target.revision,
                create_pr=self.target.create_pr,
                gitignore_content=IGNORE_NOTHING,
                free_memory=False,
            ),
            f"upload to {repo_id}",
            TRIES_OF_UPLOADS,
        )
        for one in added:
            if one.path_in_repo in self.hashes and one.upload_info.sha256.hex() not in self.hashes[one.path_in_repo]:
                raise self._changed(one.path_in_repo)
        return added

    def _commit(self, now: Snapshot, operations: list[CommitOperationAdd | CommitOperationDelete]) -> str:
        """Make the commit on top of what was seen, and return its address."""
        try:
            with warnings.catch_warnings():
                # Predictions are a data file, and they belong to the model.
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
                made = self.target.client.create_commit(
                    self.target.repo_id,
                    operations,
                    commit_message=self.message,
                    revision=self.target.revision,
                    create_pr=self.target.create_pr,
                    parent_commit=now.commit,
                )
        except JSONDecodeError:
            raise
        except ValueError as error:  # Of the client: the Hub finds the metadata of README.md invalid.
            said = " ".join(str(error).split())
            raise ValueError(f"The Hub refuses the commit. {said} Correct that, then push again.") from error
        return str(made.pr_url or made.commit_url)

    def _addition(self, name: str, made: dict[str, bytes]) -> CommitOperationAdd:
        if name in made:
            return CommitOperationAdd(name, made[name])
        path = self.folder / name
        return CommitOperationAdd(name, path.read_bytes() if path.stat().st_size <= LARGEST_REGULAR else path)

    def _hashes(self, name: str) -> list[str]:
        """The ids by which the Hub may know a file of the folder; SHA-256 is that of the report."""
        path, recorded = self.folder / name, self.report.files[name].sha256
        if path.stat().st_size > LARGEST_REGULAR:
            return [recorded]
        found = _hashes_of(path.read_bytes())
        if recorded not in found:  # The folder was checked before the Hub was asked.
            raise self._changed(name)
        return found

    def _changed(self, name: str) -> ValueError:
        return ValueError(f"`{name}` in {self.folder} was changed during the push.")

    def _pull_request(self) -> int | None:
        """The number of the open pull request that holds the folder: that of a try whose answer was lost."""
        client, repo_id = self.target.client, self.target.repo_id
        found = self.patience(
            lambda: list(client.get_repo_discussions(repo_id, discussion_type="pull_request")),
            f"list the pull requests of {repo_id}",
        )
        for one in found:
            if one.title == self.message and one.status in ("open", "draft"):
                there = snapshot(client, repo_id, f"refs/pr/{one.num}", self.patience)
                if there is not None and self._plan(there)[0].nothing:
                    return int(one.num)
        return None

    def _address(self, path: str) -> str:
        return f"{self.target.client.endpoint}/{self.target.repo_id}/{path}"


def _hashes_of(content: bytes) -> list[str]:
    """SHA-256, for files that the Hub stores as large ones, and git's id, for others."""
    return [sha256(content).hexdigest(), git_hash(content)]
