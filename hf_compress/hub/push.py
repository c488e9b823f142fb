"""Publishing a finished folder on the Hub in one commit."""

from pathlib import Path

from huggingface_hub import errors, get_token

from hf_compress.hub.checking import check, check_token
from hf_compress.hub.client import api
from hf_compress.hub.preflight import check_id

HIDDEN = (".*", "**/.*")


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload `folder` to the Hub repository `repo_id` in one commit, and return the repository's address.

    The repository is created if it does not exist.

    Args:
        folder: what `save_compressed`, `Report.save` and `save_card` wrote; hidden files are left out.
        repo_id: "owner/name", or "name" for a repository of the owner of the token.
        private: whether to hide a repository that is created; None leaves it to the owner's default.
        revision: the branch to push to; None is the main branch.
        create_pr: open a pull request instead of changing the branch.
        message: of the commit. The default names recipe, task and size.
        token: a Hub token with write access. The default is that of `hf auth login`.

    Raises:
        ValueError: a file is missing, the card is not what the report says, `repo_id` is malformed, or the Hub cannot
            be reached or refuses.

    Example:
        >>> from hf_compress import push
        >>> push("run/compressed", "someone/minilm-sst2")  # doctest: +SKIP
        'https://huggingface.co/someone/minilm-sst2'
    """
    folder = Path(folder)
    report = check(folder)
    check_token(folder, token or get_token())
    check_id(repo_id)
    client = api(token)
    try:
        created = client.create_repo(repo_id, private=private, exist_ok=True)
        client.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message=message
            or f"Add {report.recipe.name} for {report.task}, {report.size.packed_bytes:,} bytes",
            ignore_patterns=list(HIDDEN),
            revision=revision,
            create_pr=create_pr,
        )
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # Imported there from the HTTP client.
        raise ValueError(
            f"{folder} is complete, but could not be pushed to {repo_id}: {error}. Fix that, then run `hf-compress "
            f"push {folder} {repo_id}`."
        ) from error
    return str(created)
