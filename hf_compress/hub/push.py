"""Publishing a finished folder: the repository comes to hold the folder, in one commit."""

import shlex
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path

from huggingface_hub import get_token

from hf_compress.checkpoint.aside import written_aside
from hf_compress.hub.changes import Changes
from hf_compress.hub.checking import check
from hf_compress.hub.commit import Commit
from hf_compress.hub.leaks import check_secrets
from hf_compress.hub.patience import FAILURES, Patience
from hf_compress.hub.preflight import Target, check_names, find_target
from hf_compress.hub.refusals import explained
from hf_compress.hub.repository import MAIN
from hf_compress.report.card import render
from hf_compress.report.contents import CARD_NAME, unrecorded
from hf_compress.report.report import REPORT_NAME, Report


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Args:
        url: of the commit or the pull request; of the repository's last commit if there was nothing to change.
        changes: what changed, by file.
        left: files of the folder that were not uploaded, because the report does not record them.
    """

    url: str
    changes: Changes
    left: list[str]


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    replace: bool = False,
    regression_too: bool = False,
) -> str:
    """Make the Hub repository `repo_id` hold `folder`, in one commit, and return the address of that commit.

    The repository and the branch are created if they do not exist. Files of an earlier push that the folder lacks are
    removed. Other files of the repository stay. README.md keeps what its author wrote outside our marks. If nothing
    differs, no commit is made. Requests that fail for a passing reason are made again, for up to a minute.

    Args:
        folder: what `finish` wrote. Its report and its card come to name the repository.
        repo_id: "owner/name", or "name" for a repository of the owner of the token.
        private: whether to hide a repository that is created; None leaves that to the default of its owner.
        revision: the branch to push to; None is the main branch.
        create_pr: open a pull request instead of changing the branch.
        message: of the commit. The default names recipe, task and size.
        token: a Hub token with write access. The default is that of `hf auth login`.
        replace: give up files of another model in the repository, and its author's text in README.md where the folder
            has another text.
        regression_too: whether a model that lost more than its `--compress_max_drop` may be published.

    Raises:
        ValueError: the folder is not what its report says or holds a secret, an option is wrong, the repository holds
            another model, or the Hub cannot be reached or refuses. The message says what to do next. Nothing is
            published then.

    Example:
        >>> from hf_compress import push
        >>> push("run/compressed", "someone/minilm-sst2")  # doctest: +SKIP
        'https://huggingface.co/someone/minilm-sst2/commit/3f1c...'
    """
    return publish(
        folder,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        token=token,
        replace=replace,
        regression_too=regression_too,
    ).url


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    replace: bool = False,
    regression_too: bool = False,
) -> Pushed:
    """What `push` does with the same arguments, and what changed.

    Raises:
        ValueError: as `push`.
    """
    folder = Path(folder)
    check_names(repo_id, revision, message, create_pr=create_pr)
    report = check(folder, regression_too=regression_too)
    check_secrets(folder, _names(report), token or get_token())
    patience = Patience()
    target = find_target(repo_id, private, revision, create_pr, token, patience)
    try:
        report = _named(folder, report, target.repo_id)
        message = message or f"Add {report.recipe.name} for {report.task}, {report.size.packed_bytes:,} bytes"
        _create(target, private, patience)
        url, done = Commit(target, folder, report, message, replace, patience).make()
    except FAILURES as error:
        raise ValueError(
            f"{folder} is complete, but could not be pushed to {target.repo_id}. {explained(error, target.repo_id)} "
            f"Then run `{shlex.join(['hf-compress', 'push', str(folder), repo_id])}`."
        ) from error
    return Pushed(url, done, unrecorded(folder, report))


def _names(report: Report) -> list[str]:
    """The names of all files that are uploaded."""
    return sorted({*report.files, REPORT_NAME, CARD_NAME})


def _named(folder: Path, report: Report, repo_id: str) -> Report:
    """The report, which names the repository now, as its card does.

    This is not `save_card`, which would record again whatever is in the folder.
    """
    if report.hub_id == repo_id:
        return report
    report = replace_fields(report, hub_id=repo_id)
    card = render(report, (folder / CARD_NAME).read_text("utf-8"))
    with written_aside(folder, CARD_NAME, replace=True) as aside:
        report.save(aside.parent)
        aside.write_text(card, "utf-8")
    return report


def _create(target: Target, private: bool | None, patience: Patience) -> None:
    """Create the repository and the branch, where they are missing."""
    client, repo_id = target.client, target.repo_id
    if not target.exists:
        patience(lambda: client.create_repo(repo_id, private=private, exist_ok=True), f"create {repo_id}")
    if target.revision != MAIN and not target.revision.startswith("refs/"):
        branch = target.revision
        refs = patience(lambda: client.list_repo_refs(repo_id), f"list the branches of {repo_id}")
        if branch in {one.name for one in refs.tags}:
            raise ValueError(f"`--revision` must be the name of a branch; {branch} is a tag of {repo_id}.")
        if branch not in {one.name for one in refs.branches}:
            patience(lambda: client.create_branch(repo_id, branch=branch, exist_ok=True), f"create branch {branch}")
