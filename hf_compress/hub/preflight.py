"""Whether a push could work, asked before training starts: id, token, right to write, and what stands there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, errors, get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_compress.hub import client
from hf_compress.hub.changes import decides
from hf_compress.hub.patience import FAILURES, Patience
from hf_compress.hub.refusals import LOGIN, TOKENS, explained
from hf_compress.hub.repository import MAIN, find, snapshot
from hf_compress.redaction import redact_text

WRITERS = ("contributor", "write", "admin")
NAMED = 5
COMMIT = re.compile(r"[0-9a-f]{40}")
PULL_REQUEST = re.compile(r"refs/pr/[1-9]\d*")
# https://git-scm.com/docs/git-check-ref-format
ILLEGAL = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/$|^/|^-|\.$|\.lock(/|$)|(^|/)\.|^@$")


@dataclass(frozen=True)
class Target:
    """Where a push goes, as the Hub knows it before the push.

    Args:
        client: of the Hub, with the token in use.
        repo_id: "owner/name".
        revision: the branch or pull request.
        create_pr: whether a pull request is opened.
        exists: whether there is such a repository.
    """

    client: HfApi
    repo_id: str
    revision: str
    create_pr: bool
    exists: bool


def check_access(
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> None:
    """Check that the Hub would take a push to `repo_id`. Nothing is created.

    Args:
        repo_id: "owner/name", or "name" for a repository of the owner of the token.
        private: whether the repository is to be private; None leaves that to the owner's default, or to what it is.
        revision: the branch to push to; None is the main branch.
        create_pr: whether a pull request is opened.
        token: a token of the Hub. The default is that of `hf auth login`.

    Raises:
        ValueError: the id or the revision is malformed; there is no token, or the Hub does not accept it; it may not
            write there; the repository is public and not private, or the reverse; it holds another model; or the Hub
            cannot be reached. The message says what to do.

    Example:
        >>> from hf_compress.hub import check_access
        >>> check_access("someone/minilm-sst2")  # doctest: +SKIP
    """
    patience = Patience()
    target = find_target(repo_id, private, revision, create_pr, token, patience)
    if not target.exists:
        return
    try:
        found = snapshot(target.client, target.repo_id, target.revision, patience)
        found = found or snapshot(target.client, target.repo_id, MAIN, patience)
    except FAILURES as error:
        raise ValueError(explained(error, repo_id)) from error
    if found and (others := sorted(path for path in found.files if decides(path) and path not in found.ours)):
        raise ValueError(f"{holds_another_model(target.repo_id, others)} Choose another id, or remove them there.")


def holds_another_model(repo_id: str, paths: list[str]) -> str:
    """The sentence that names the files which an earlier push did not write."""
    named = ", ".join(paths[:NAMED]) + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")
    return f"{repo_id} holds files of another model, which users might load in place of yours: {named}."


def find_target(
    repo_id: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    token: str | None,
    patience: Patience,
) -> Target:
    """The repository that a push would go to, after all checks of `check_access` but that of its files.

    Raises:
        ValueError: as `check_access`.
    """
    check_names(repo_id, revision, create_pr=create_pr)
    if (token or get_token()) is None:
        raise ValueError(
            f"A push to {repo_id} needs a token of the Hub, and there is none. {LOGIN} to a token with the role "
            f"`write` from {TOKENS}."
        )
    api = client.api(token)
    try:
        account = patience(api.whoami, "ask the Hub who owns the token")
        whole = repo_id if "/" in repo_id else f"{account['name']}/{repo_id}"
        found = find(api, whole, patience)
    except FAILURES as error:
        raise ValueError(explained(error, repo_id)) from error
    if not create_pr and not (revision or "").startswith("refs/pr/"):
        check_right_to_write(whole, account)
    elif found is None:
        raise ValueError(
            f"A pull request needs a repository, and the Hub has no {whole} that this token may see. Check the id, or "
            "push without `--create-pr`, which creates it."
        )
    if found is None:
        return Target(api, whole, revision or MAIN, create_pr, exists=False)
    whole, hidden = found
    if private is not None and private != hidden:
        wanted, is_now = ("private", "public") if private else ("public", "private")
        raise ValueError(
            f"`--{wanted}` was given, but {whole} is {is_now}. Leave the flag out, or change that at "
            f"{api.endpoint}/{whole}/settings."
        )
    return Target(api, whole, revision or MAIN, create_pr, exists=True)


def check_names(repo_id: str, revision: str | None = None, message: str | None = None, *, create_pr: bool) -> None:
    """Check what a push would make public besides the files: ids and message.

    Raises:
        ValueError: the id or the revision is malformed, or one of them holds a secret.

    Example:
        >>> from hf_compress.hub.preflight import check_names
        >>> check_names("someone/minilm-sst2", "v2", "Second run", create_pr=False)
    """
    for option, text in (("`repo_id`", repo_id), ("`--revision`", revision), ("`--message`", message)):
        if text and redact_text(text) != text:
            raise ValueError(f"{option} would be public, and holds what looks like a secret. Choose another one.")
    _check_revision(revision, create_pr=create_pr)
    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise ValueError(
            f"`repo_id` must be of the form owner/name, in letters, digits, `-`, `_` and `.`; got {repo_id!r}. {error}"
        ) from error


def _check_revision(revision: str | None, *, create_pr: bool) -> None:
    """Refuse a commit, an illegal name of a branch, and a branch to open a pull request against."""
    if revision is None:
        return
    if create_pr and revision != MAIN:
        raise ValueError(
            f"`--create-pr` opens a pull request against {MAIN}; got `--revision {revision}`. Leave one of them out."
        )
    illegal = revision.startswith("refs/") and not PULL_REQUEST.fullmatch(revision)
    if not revision or COMMIT.fullmatch(revision) or ILLEGAL.search(revision) or illegal:
        raise ValueError(
            f"`--revision` must be the name of a branch, or refs/pr/N for an open pull request; got {revision!r}."
        )


def check_right_to_write(repo_id: str, account: Mapping[str, Any]) -> None:
    """Check that the account may write to `repo_id`, as far as the Hub tells.

    Args:
        repo_id: "owner/name".
        account: the answer of `HfApi.whoami`.

    Raises:
        ValueError: the token reads only, is fine-grained without the right, or the owner is somebody else.

    Example:
        >>> from hf_compress.hub.preflight import check_right_to_write
        >>> check_right_to_write("me/small", {"name": "me", "auth": {"accessToken": {"role": "write"}}})
    """
    owner = repo_id.partition("/")[0]
    me = str(account["name"])
    roles = {one["name"].lower(): one.get("roleInOrg") for one in account.get("orgs") or []}
    if owner.lower() != me.lower() and owner.lower() not in roles:
        owners = ", ".join([me, *(one["name"] for one in account.get("orgs") or [])])
        raise ValueError(
            f"`{repo_id}`: the token's owner may write to repositories of {owners}, not of {owner}. Choose one of "
            "these owners, or propose the change with `--create-pr`."
        )
    role = roles.get(owner.lower())
    if role is not None and role not in WRITERS:
        raise ValueError(
            f"`{repo_id}`: {me} has the role `{role}` in {owner}, which may not write. Ask an administrator of "
            f"{owner} for the role `contributor` or `write`."
        )
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise ValueError(
            f"`{repo_id}`: the token may only read. Make one with the role `write` at {TOKENS}, then run `hf auth "
            "login`."
        )
    if access.get("role") == "fineGrained" and not _covers(access.get("fineGrained") or {}, repo_id, owner):
        raise ValueError(
            f"`{repo_id}`: the fine-grained token has no write access to it. Give the token `Write access to contents"
            f"/settings of all repos` of {owner}, or of this repository, at {TOKENS}."
        )


def _covers(rights: Mapping[str, Any], repo_id: str, owner: str) -> bool:
    """Whether a fine-grained token may write to the repository."""
    scopes = rights.get("scoped") or []
    names = {repo_id.lower(), owner.lower()}
    return any(
        str((scope.get("entity") or {}).get("name", "")).lower() in names
        and "repo.write" in (scope.get("permissions") or [])
        for scope in scopes
    )
