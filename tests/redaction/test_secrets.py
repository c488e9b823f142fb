"""Secrets leave every text, by their names, by their looks, and because they are in use; other text stays."""

import base64
import json
import os
from pathlib import Path

import pytest

from hf_compress.redaction import found_secret, keep_secret, redact_text, secrets_in_use
from hf_compress.redaction.secrets import secrets_of

LETTERS = "aB3" * 12
TOKEN = f"hf_{LETTERS[:34]}"
# One of each kind, put together here so that no scanner of repositories takes them for real.
LOOKING = [
    TOKEN,
    "hf_" + "abcdefgh" * 4,
    "api_org_" + LETTERS,
    "ghp_" + LETTERS,
    "github_pat_" + LETTERS,
    "glpat-" + LETTERS[:20],
    "xoxb-" + "12345678-" * 3,
    "sk-" + LETTERS,
    "sk-proj-" + LETTERS,
    "sk_live_" + LETTERS,
    "AKIA" + "ABCDEFGH12345678",
    "AIza" + LETTERS[:35],
    "npm_" + LETTERS,
    "pypi-" + LETTERS,
    ".".join(["eyJ" + LETTERS, "eyJ" + LETTERS, LETTERS]),
    "\n".join(["-----BEGIN RSA " + "PRIVATE KEY-----", LETTERS, LETTERS, "-----END RSA " + "PRIVATE KEY-----"]),
]


@pytest.mark.parametrize("secret", LOOKING)
@pytest.mark.parametrize("around", ["{}", "see {}.", '"{}"', "a={}&b=1", "x:{}\n", "({})", "--note={}", "token_{}"])
def test_a_value_that_looks_like_a_secret_goes(secret: str, around: str) -> None:
    text = redact_text(around.format(secret))
    assert secret not in text
    assert LETTERS[:12] not in text
    assert "REDACTED" in text
    assert found_secret(around.format(secret)) is not None
    assert found_secret(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Addresses.
        ("git+https://user:pass@host/x.git", "git+https://REDACTED@host/x.git"),
        ("https://user:p@ss@host/x", "https://REDACTED@host/x"),
        ("s3://KEYID:se/cr/et@bucket/data", "s3://REDACTED@bucket/data"),
        ("https://abc123@github.com/x", "https://REDACTED@github.com/x"),
        ("https://host/rows?access_token=x1&n=2", "https://host/rows?access_token=REDACTED&n=2"),
        ("https://host/r?X-Amz-Signature=ab1&X-Amz-Date=2", "https://host/r?X-Amz-Signature=REDACTED&X-Amz-Date=2"),
        ("https://host/#access_token=x1", "https://host/#access_token=REDACTED"),
        ("https://x.blob/y?sv=1&sig=ab%2Fc", "https://x.blob/y?sv=1&sig=REDACTED"),
        ("https://hooks.slack.com/services/T0/B0/xyz", "https://hooks.slack.com/services/REDACTED"),
        # Documents and printed objects.
        ('{"token": "x1", "n": 2}', '{"token": "REDACTED", "n": 2}'),
        ('{"password": "a b, c}"}', '{"password": "REDACTED"}'),
        ("{'hub_token': 'x1', 'n': 2}", "{'hub_token': 'REDACTED', 'n': 2}"),
        (r'"{\"token\": \"x1\", \"n\": 2}"', r'"{\"token\": \"REDACTED\", \"n\": 2}"'),
        ('{"api_keys": ["a", "b"], "n": 2}', '{"api_keys": REDACTED, "n": 2}'),
        ("hub_token: x1\nseed: 3", "hub_token: REDACTED\nseed: 3"),
        ("TrainingArguments(hub_token=x1, seed=3)", "TrainingArguments(hub_token=REDACTED, seed=3)"),
        ("AccountName=me;AccountKey=ab+c/d==;x=1", "AccountName=me;AccountKey=REDACTED;x=1"),
        ("models:\n  - token: x1\n    key: 'a b'", "models:\n  - token: REDACTED\n    key: 'REDACTED'"),
        ("HF_TOKEN=x1 python train.py", "HF_TOKEN=REDACTED python train.py"),
        # Headers.
        ("Authorization: Bearer abc.def", "Authorization: REDACTED"),
        ("'authorization': 'Basic dXNlcjpwYXNz'", "'authorization': 'REDACTED'"),
        ("got header bearer abcdef123456", "got header bearer REDACTED"),
        ("X-Api-Key: abcdef", "X-Api-Key: REDACTED"),
    ],
)
def test_a_secret_goes_and_the_text_around_it_stays(text: str, expected: str) -> None:
    assert redact_text(text) == expected
    assert redact_text(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/data",
        "https://host:8080/rows@v1?page=2",
        "git@github.com:me/model.git",
        "ssh://git@github.com/me/model",
        "hf://datasets/me/data@main/train.csv",
        "Unexpected token: ')' in line 3",
        "key: accuracy",
        "KeyError: 'accuracy'",
        "the token type is 1, pad_token_id=0, pad_token='[PAD]'",
        "--hub_token None, use_auth_token=False",
        "--text_key sentence --sort_key=length",
        "a monkey, a keyboard and the author's tokenizer: fast",
        "task-classification-for-everybody and sk-learn-like-estimators",
        "hf_compress hf_transfer",
        "max_tokens=128, tokens: 5",
        "sha256: " + "0123456789abcdef" * 4,
        "metric=accuracy, basic classification of the bearer",
    ],
)
def test_text_without_a_secret_stays(text: str) -> None:
    assert redact_text(text) == text
    assert found_secret(text) is None


def test_words_of_a_vocabulary_are_no_secrets() -> None:
    words = ["authorization", "token", "password", "bearer", "secret", "##key", "https", "://", "@", "sk", "hf"]
    assert found_secret(json.dumps({word: 20_000 + index for index, word in enumerate(words)})) is None
    assert found_secret("\n".join(words)) is None


def test_a_secret_of_the_environment_leaves_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "correct horse/battery")
    monkeypatch.setenv("HF_TOKEN_FLAG", "true")
    monkeypatch.setenv("MAX_TOKENS", "sentence")
    assert redact_text("run correct horse/battery now") == "run REDACTED now"
    assert redact_text("?q=correct%20horse%2Fbattery") == "?q=REDACTED"
    assert redact_text("true sentence") == "true sentence"
    assert os.environ["WANDB_API_KEY"] in secrets_in_use()


def test_a_secret_of_the_command_line_leaves_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["push", "--token", "planted-one", "out/compressed", "--pw=x", "--password=planted-two"]
    )
    assert redact_text("planted-one planted-two out/compressed") == "REDACTED REDACTED out/compressed"


def test_the_stored_token_of_the_hub_leaves_every_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tmp_path / "token"
    stored.write_text("planted-at-login\n", "utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(stored))
    assert redact_text("refused planted-at-login") == "refused REDACTED"


def test_a_kept_secret_leaves_every_text_unless_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_compress.redaction.secrets._KEPT", set())
    for value in ("planted value", "short", "", None):
        keep_secret(value)
    assert redact_text("a planted value, short") == "a REDACTED, short"


def test_a_plural_option_hides_all_its_values() -> None:
    assert secrets_of(["--api_keys", "a", "b", "--token", "c", "d"]) == {1: "a", 2: "b", 4: "c"}


def test_long_text_is_redacted_in_little_time() -> None:
    """No pattern is quadratic: a card's text or a traceback may be long."""
    for part in (
        "a" * 40,
        "a:b@",
        "://a:b ",
        "://a:b",
        '"',
        "key='",
        "key=[",
        "key=",
        "\\",
        "A_",
        "-eyJ",
        "-sk-",
        "a: ",
        "bearer ",
    ):
        redact_text(part * 20_000)


def test_binary_like_text_does_not_raise() -> None:
    redact_text(base64.b85encode(bytes(range(256)) * 16).decode())
