"""What stands in a repository of the Hub."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi, errors, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from hf_compress.hub.patience import Patience
from hf_compress.report.contents import CARD_NAME
from hf_compress.report.eval_results import RESULTS_NAME
from hf_compress.report.report import REPORT_NAME

MAIN = "main"
FAMILY = "hf_compress.report/"  # How the schema of every report of ours begins.
LARGEST_TEXT = 20_000_000  # Bytes; a longer README or report is none of ours.


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository.

    Args:
        commit: its id.
        private: whether the repository is private.
        files: SHA-256 of the large files and git's id of the others, by path.
        ours: the paths that an earlier push wrote, as the report in the repository records them.
        readme: the text of README.md; empty if there is none.
    """

    commit: str
    private: bool
    files: Mapping[str, str] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    readme: str = ""


def find(client: HfApi, repo_id: str, patience: Patience) -> tuple[str, bool] | None:
    """The id of the repository as the Hub writes it, and whether it is private; None if the token may see no such.

    The Hub follows the old names of repositories that were renamed, and takes capital letters for small ones.
    """
    try:
        found = patience(lambda: client.model_info(repo_id), f"look at {repo_id}")
    except errors.RepositoryNotFoundError:
        return None
    return str(found.id), bool(found.private)


def snapshot(client: HfApi, repo_id: str, revision: str, patience: Patience) -> Snapshot | None:
    """What `revision` of the repository holds now; None if there is no such revision.

    Everything is read at one commit, so that it fits together.
    """
    looking = f"look at {repo_id}"
    try:
        found = patience(lambda: client.model_info(repo_id, revision=revision), looking)
    except errors.RevisionNotFoundError:
        return None
    commit = str(found.sha)
    entries = patience(lambda: list(client.list_repo_tree(repo_id, recursive=True, revision=commit)), looking)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def text(name: str) -> str:
        if name not in files or files[name].size > LARGEST_TEXT:
            return ""
        content = patience(lambda: _read(client, repo_id, name, commit), f"read {name} of {repo_id}")
        return content.decode("utf-8", "replace")

    return Snapshot(
        commit,
        bool(found.private),
        {path: entry.lfs.sha256 if entry.lfs else entry.blob_id for path, entry in files.items()},
        written_by_us(text(REPORT_NAME)) & files.keys(),
        text(CARD_NAME),
    )


def written_by_us(report: str) -> frozenset[str]:
    """The paths that a push with this `report.json` may have written, README.md aside; none if it is not one of ours.

    The report may come from another version of hf_compress.

    Example:
        >>> from hf_compress.hub.repository import written_by_us
        >>> sorted(written_by_us('{"schema": "hf_compress.report/1", "files": {"config.json": {}}}'))
        ['.eval_results/hf_compress.yaml', 'config.json', 'report.json']
        >>> sorted(written_by_us('{"accuracy": 0.9}'))
        []
    """
    try:
        values = json.loads(report)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply.
        return frozenset()
    if not isinstance(values, dict) or not str(values.get("schema", "")).startswith(FAMILY):
        return frozenset()
    return frozenset({REPORT_NAME, RESULTS_NAME, *_names(values.get("files"))})


def _names(files: Any) -> Iterable[str]:
    return (str(name) for name in files) if isinstance(files, dict) else ()


def _read(client: HfApi, repo_id: str, name: str, commit: str) -> bytes:
    """The content of a small file, without a copy in the cache."""
    url = hf_hub_url(repo_id, name, revision=commit, endpoint=client.endpoint)
    response = get_session().get(url, headers=build_hf_headers(token=client.token))
    hf_raise_for_status(response)
    content: bytes = response.content
    return content
