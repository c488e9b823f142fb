"""Names of options, variables and keys that hold a secret."""

import re

# A name with one of these words, or with a word that ends in one of SURE_ENDINGS, always holds a secret.
SURE = {
    *("password", "passwords", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets"),
    *("credential", "credentials", "creds", "apikey", "apikeys", "authorization", "cookie"),
    *("dbpass", "sshpass", "userpass", "smtppass", "ftppass"),
}
SURE_ENDINGS = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "sshkey",
)
# These words also have a harmless meaning.
WEAK = {"token", "key", "auth", "pass", "jwt", "oauth", "bearer"}
WEAK_PLURAL = {"tokens", "keys"}
# With one of these words, the secret is meant.
QUALIFIERS = {
    *(
        "api",
        "access",
        "private",
        "auth",
        "oauth",
        "session",
        "refresh",
        "bearer",
        "security",
        "signing",
        "encryption",
    ),
    *("ssh", "account", "storage", "service", "bot", "deploy", "client", "user", "login", "admin", "app", "webhook"),
    *("db", "database", "proxy", "registry", "smtp", "redis", "mysql", "postgres", "hub", "hf", "huggingface"),
    *("wandb", "comet", "neptune", "clearml", "mlflow", "aws", "s3", "gcp", "gcs", "azure", "git", "github", "gitlab"),
    *("openai", "anthropic", "slack", "telegram", "pypi", "npm", "docker", "kaggle", "swanlab", "trackio"),
}
# With one of these words and no qualifier, the harmless one: `pad_token_id`, `key_column`, `max_token`, `auth_type`.
HARMLESS = {
    *("id", "ids", "type", "types", "length", "column", "columns", "name", "names", "size", "dim", "dropout", "loss"),
    *("pad", "padding", "eos", "bos", "unk", "sep", "cls", "mask", "special", "extra", "start", "end", "forced"),
    *("image", "audio", "video", "text", "sentence", "label", "labels", "input", "target", "feature", "field"),
    *("num", "max", "min", "n", "new", "per", "first", "last", "next", "level", "count", "limit", "budget", "index"),
    *("prefix", "suffix", "decoder", "classification", "embedding", "position", "vocab", "ratio", "rate", "weights"),
    *("sort", "primary", "foreign", "dataset", "value", "query", "head", "heads", "cache", "kv", "metric", "drop"),
    *("method", "mode", "word", "past", "values", "sub", "multi"),
}
# Variables of every shell, which hold paths.
NOT_SECRET = {"PWD", "OLDPWD", "SSH_AUTH_SOCK"}
# `KeyError: 'loss'` names no secret.
EXCEPTIONS = {"error", "exception", "warning"}
# In the address of a signed download.
SIGNATURES = {"sig", "signature", "x-amz-signature", "x-goog-signature", "x-amz-credential", "x-goog-credential"}


def is_secret(name: str) -> bool:
    """Whether an option, variable or key of this name holds a secret.

    Example:
        >>> from hf_compress.redaction import is_secret
        >>> is_secret("--hubToken"), is_secret("--tokenizer_name"), is_secret("pad_token_id")
        (True, False, False)
    """
    words = _words(name)
    if name in NOT_SECRET or not words or words & EXCEPTIONS:
        return False
    if words & SURE or any(word.endswith(SURE_ENDINGS) for word in words) or name.lower() in SIGNATURES:
        return True
    weak = words & WEAK or any(_ends_in_token(word) for word in words)
    if any(words & QUALIFIERS - {word} for word in words & (WEAK | WEAK_PLURAL)) or (weak and not words & WEAK):
        return True
    # "pass" alone is a password; in "two_pass" it is not.
    return bool(weak) and not words & HARMLESS and (weak != {"pass"} or len(words) == 1)


def is_surely_secret(name: str) -> bool:
    """Whether a name can only mean a secret, also in a sentence, where "key: " and "token: " may introduce anything.

    Example:
        >>> from hf_compress.redaction.names import is_surely_secret
        >>> is_surely_secret("hub_token"), is_surely_secret("token")
        (True, False)
    """
    return is_secret(name) and not _words(name) <= WEAK


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return {word for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()) if word}


def _ends_in_token(word: str) -> bool:
    """Whether the word is written together with what it is the token of: `hubtoken`, but not `padtoken`."""
    return word.endswith("token") and word != "token" and word.removesuffix("token") not in HARMLESS
