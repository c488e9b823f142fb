"""Absolute paths of any machine become relative or their last part; what only looks like one stays."""

from pathlib import Path

import pytest

from hf_compress.redaction import shorten_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/runs/teacher", "teacher"),
        ("/home/alice/runs/teacher/", "teacher"),
        ("/Users/Alice Smith/My Models/teacher", "teacher"),
        ("/home/alice", "~"),
        ("/Users/alice/", "~"),
        ("/mnt/nfs/alice/x.csv", "x.csv"),
        ("~/runs/teacher", "teacher"),
        ("~alice/runs/teacher", "teacher"),
        ("file:///home/alice/x.csv", "x.csv"),
        ("file:/home/alice/x.csv", "x.csv"),
        ("file://server/home/alice/x.csv", "x.csv"),
        ("sqlite:////home/alice/study.db", "sqlite:///study.db"),
        ("alice@server:/home/alice/x", "x"),
        (r"C:\Users\alice\runs\teacher", "teacher"),
        (r"C:\Users\Alice Smith\runs\teacher", "teacher"),
        (r"C:\\Users\\alice\\teacher", "teacher"),
        ("C:/Users/alice/teacher", "teacher"),
        (r"C:\Users\alice", "~"),
        ("file:///C:/Users/alice/teacher", "teacher"),
        (r"\\server\alice\teacher", "teacher"),
        (r'{"a": "C:\\Users\\alice\\teacher"}', '{"a": "teacher"}'),
        ('{"a": "/home/alice b/teacher", "n": 2}', '{"a": "teacher", "n": 2}'),
        ("--x=/home/alice/a:/home/alice/b,/home/alice/c", "--x=a:b,c"),
        ("-o/home/alice/run", "-orun"),
        ("@/home/alice/args.txt", "@args.txt"),
        ("../../home/alice/run", "run"),
        ('File "/home/alice/train.py", line 3', 'File "train.py", line 3'),
        ("/home/alice/train.py:12: UserWarning", "train.py:12: UserWarning"),
        (r"'a\n/home/alice/b\n'", r"'a\nb\n'"),
        ("see (/home/alice/x) and `/home/alice/y`", "see (x) and `y`"),
        ("loads\n/home/alice/x\n", "loads\nx\n"),
    ],
)
def test_a_path_becomes_its_last_part(text: str, expected: str) -> None:
    short = shorten_paths(text)
    assert short == expected
    assert "lice" not in short
    assert shorten_paths(short) == short


@pytest.mark.parametrize(
    "text",
    [
        "https://host/home/x",
        "https://host:8080/data/x",
        "s3://home/data/x",
        "hf://datasets/me/data",
        "sqlite:///runs.db",
        "bert/base",
        "runs/x",
        "../teacher",
        "layer/[0-9]+",
        "/[0-9]+/x",
        "/bert/encoder/layer.0/MatMul",
        "and/or, 1/2, a / b",
        "re: x, c:1, a:b",
        "/dev/null",
        "~",
        "~ 5 points",
        r"\d+\.\w",
        r"a\nb",
        "key:/value",
    ],
)
def test_what_is_not_a_path_stays(text: str) -> None:
    assert shorten_paths(text) == text


def test_paths_below_the_working_directory_become_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shorten_paths(f"{tmp_path}/runs/x") == "runs/x"
    assert shorten_paths(f"--x={tmp_path}/runs/x") == "--x=runs/x"
    assert shorten_paths(str(tmp_path)) == "."


@pytest.mark.parametrize("here", ["/", "/home"])
def test_a_path_relative_to_all_homes_names_no_user(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path(here))
    assert shorten_paths("/home/alice/runs/x") == "x"


def test_a_home_with_spaces_in_a_sentence_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/Alice Smith")
    assert shorten_paths("could not read /home/Alice Smith/x.json, so") == "could not read x.json, so"


def test_long_text_is_shortened_in_little_time() -> None:
    for part in ("/a" * 20, "../", "~/", "C:\\a ", "\\\\a\\", "a@b:", '"/a ', "-o"):
        shorten_paths(part * 20_000)
