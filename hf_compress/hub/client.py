"""The one place where a client of the Hub is made."""

from huggingface_hub import HfApi

from hf_compress.redaction import keep_secret


def api(token: str | None = None) -> HfApi:
    """A client of the Hub that sends `token`, or the stored token of `hf auth login` if it is None.

    Example:
        >>> from hf_compress.hub.client import api
        >>> api("hf_...").token
        'hf_...'
    """
    keep_secret(token)
    return HfApi(token=token)
