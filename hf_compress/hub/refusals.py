"""What the Hub refused, as one sentence with the next step."""

from json import JSONDecodeError

from huggingface_hub import errors

from hf_compress.hub.patience import asked_to_wait, passes, reason, root, status_of
from hf_compress.redaction import redact_text

TOKENS = "https://huggingface.co/settings/tokens"
LOGIN = "Run `hf auth login`, or set HF_TOKEN"
FULL = ("storage", "quota", "upgrade", "billing", "payment")


def explained(error: BaseException, repo_id: str) -> str:
    """Why the Hub did not take `repo_id`, and what to do about it. Tokens and addresses of uploads are left out.

    Example:
        >>> from huggingface_hub.errors import OfflineModeIsEnabled
        >>> from hf_compress.hub.refusals import explained
        >>> explained(OfflineModeIsEnabled(), "me/small")
        'The Hub is switched off by HF_HUB_OFFLINE. Unset that variable.'
    """
    return redact_text(_explained(root(error), repo_id))


def _explained(error: BaseException, repo_id: str) -> str:
    said = reason(error)
    status = status_of(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "The Hub is switched off by HF_HUB_OFFLINE. Unset that variable."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"There is no token of the Hub. {LOGIN} to a token with the role `write` from {TOKENS}."
    if status in (402, 403, 413) and any(word in said.lower() for word in FULL):
        return f"There is no room for {repo_id}: {said}. Free some, or ask its owner for a larger plan."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The Hub has no repository {repo_id} that this token may see. Check the name and the token's rights."
    if status == 401:
        return f"The Hub does not accept the token ({said}). {LOGIN} to a valid token from {TOKENS}."
    if status == 403:
        return (
            f"This token may not write to {repo_id} ({said}). Use a token with the role `write`, of a member of its "
            f"owner who may write, from {TOKENS}; or propose the change with `--create-pr`."
        )
    if status in (409, 412):
        return f"Others change {repo_id} at the same time ({said}). Try again."
    if status == 429:
        asked = asked_to_wait(error)
        return (
            f"The Hub limits the number of requests ({said}). Try again {f'in {asked:.0f} s' if asked else 'later'}."
        )
    if (status is not None and status >= 500) or isinstance(error, JSONDecodeError):
        return f"The Hub does not work now ({said}). Try again later; https://status.huggingface.co says more."
    if status is not None:
        return f"The Hub refuses {repo_id}: {said}."
    if passes(error):
        return f"The Hub could not be reached ({said}). Check the network, HF_ENDPOINT and any proxy, then try again."
    return f"{repo_id} could not be written: {said}."
