"""Whether a push could work, asked before training starts."""

from huggingface_hub import errors, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_compress.hub.client import api


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
        private: whether the repository is to be private; None leaves that to the Hub or to what it is.
        revision: the branch to push to; None is the main branch.
        create_pr: whether a pull request is opened.
        token: a token of the Hub. The default is that of `hf auth login`.

    Raises:
        ValueError: the id is malformed, there is no token, or the Hub does not know it or cannot be reached.

    Example:
        >>> from hf_compress.hub import check_access
        >>> check_access("someone/minilm-sst2")  # doctest: +SKIP
    """
    check_id(repo_id)
    if (token or get_token()) is None:
        raise ValueError(f"A push to {repo_id} needs a token of the Hub, and there is none. Run `hf auth login`.")
    try:
        api(token).whoami()
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # Imported there from the HTTP client.
        raise ValueError(f"The Hub did not accept the token for {repo_id}: {error}. Run `hf auth login`.") from error


def check_id(repo_id: str) -> None:
    """Check the form of the id of a repository.

    Raises:
        ValueError: it is malformed.

    Example:
        >>> from hf_compress.hub.preflight import check_id
        >>> check_id("someone/minilm-sst2")
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be of the form owner/name; got {repo_id!r}. {error}") from error
