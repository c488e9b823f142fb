"""What a release changes has one place, and what it builds holds the whole package and works alone."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import hf_compress
from hf_compress import release

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SKILL = ROOT / "skills" / "hf-compress" / "SKILL.md"
PAGES = [
    ROOT / "README.md",
    SKILL,
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.yaml")),
]
ADDRESS = "https://example.org/us/hf_compress"


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "hf_compress/release.py"
    assert hf_compress.__version__ == release.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] in ("Unreleased", release.__version__)


def test_the_address_is_the_same_everywhere() -> None:
    assert PROJECT["project"].get("urls", {}).get("Repository") == release.REPOSITORY
    _, links = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
    address = release.REPOSITORY
    assert links["replacement"] == (rf"[\1]({address}/blob/main/\2)" if address else r"\1")


def test_the_text_for_pypi_shows_no_file_of_the_repository() -> None:
    text = (ROOT / "README.md").read_text("utf-8") + "\n![a plot](docs/plot.svg)\n\nA [page](docs/index.md)."
    for one in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)
    assert not re.findall(r"\]\((?!https?://|#)[^)]*\)", text)
    assert "![" not in text and "plot" not in text.splitlines()[-1] and text.endswith("A page.")


@pytest.mark.parametrize(
    ("on_pypi", "address", "plain", "with_extra"),
    [
        (False, None, "pip install .", "pip install '.[onnx]'"),
        (
            False,
            ADDRESS,
            f"pip install 'hf-compress @ git+{ADDRESS}'",
            f"pip install 'hf-compress[onnx] @ git+{ADDRESS}'",
        ),
        (True, ADDRESS, "pip install hf-compress", "pip install 'hf-compress[onnx]'"),
    ],
)
def test_the_way_to_install_follows_the_release(
    monkeypatch: pytest.MonkeyPatch, on_pypi: bool, address: str | None, plain: str, with_extra: str
) -> None:
    monkeypatch.setattr(release, "ON_PYPI", on_pypi)
    monkeypatch.setattr(release, "REPOSITORY", address)
    assert (release.install_command(), release.install_command("onnx")) == (plain, with_extra)
    in_a_clone = plain == "pip install ."
    assert release.install_lines().endswith(plain)
    assert ("clone" in release.install_lines()) == in_a_clone
    assert release.install_step() == f"run `{plain}`" + " in a clone of the hf_compress repository" * in_a_clone


def test_pages_install_the_package_as_the_release_says() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wrong = []
    for page in PAGES:
        for command in re.findall(r"pip\s+install\s+('[^']+'|[^\s`#]+)", page.read_text("utf-8", "replace")):
            target = command.strip("'")
            if not target.startswith((".", "hf-compress")):
                continue
            named = re.search(r"\[([\w,-]+)\]", target)
            wrong += [
                f"{page}: no extra {name}" for name in (named[1].split(",") if named else ()) if name not in extras
            ]
            expected = release.install_command(named[1] if named else None).removeprefix("pip install ").strip("'")
            wrong += [] if target == expected else [f"{page}: {target}, not {expected}"]
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel, built as by `make dist`, with the build tools that are here."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def package_files() -> set[str]:
    folders = (ROOT / "hf_compress", ROOT / "hf_compress_cli")
    files = {path.relative_to(ROOT) for folder in folders for path in folder.rglob("*") if path.is_file()}
    return {file.as_posix() for file in files if "__pycache__" not in file.parts}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name == f"hf_compress-{release.__version__}-py3-none-any.whl"
    assert {name for name in names if ".dist-info/" not in name} == package_files()
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() | {"LICENSE", "Makefile", "constraints.txt", "docs/index.md", "tests/conftest.py"} <= inside


@pytest.mark.slow
def test_pypi_can_show_the_description_and_its_links(built: Path) -> None:
    words = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(files.read(name))
    assert metadata["Version"] == release.__version__
    description = str(metadata.get_payload())
    assert description.startswith("# hf_compress")
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


@pytest.mark.slow
def test_the_installed_wheel_works_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    """The wheel's files come from the wheel; the packages it needs are those of this environment."""
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*pip, str(wheel)], check=True)
    script = tmp_path / "installed.py"
    script.write_text((ROOT / "tests" / "installed.py").read_text("utf-8"), "utf-8")
    words = [sys.executable, "-P", str(script), str(ROOT), sys.executable, str(tmp_path / "bin" / "hf-compress")]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert str(tmp_path) in run.stdout
