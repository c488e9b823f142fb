"""Wrong command lines: each ends with one sentence, status 2 for usage and 1 for the rest, and writes nothing."""

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_compress.checkpoint.save import save_compressed
from hf_compress.recipe import Recipe
from hf_compress_cli import app

HUGE = "9" * 400
# FOLDER is empty, FILE holds text, BROKEN is a folder of broken files, MODEL is compressed without a report, and DENSE
# is a model that is not compressed.
USAGE = """
--no-such-option
no-such-command
inspect
inspect --tensors MODEL MODEL
inspect --markdown --json MODEL
inspect --codecs --no-such MODEL
finish
finish FOLDER FOLDER
push
push MODEL
push MODEL a/b c/d
bench
bench MODEL --rounds many
bench MODEL --rounds 0
bench MODEL --rounds -1
bench MODEL --rounds HUGE
bench MODEL --threads 0
bench MODEL --threads HUGE
bench MODEL --batch-size 1,x
bench MODEL --batch-size ,
bench MODEL --batch-size 0
bench MODEL --batch-size -1
bench MODEL --batch-size 1e3
bench MODEL --length HUGE
bench MODEL --length 999999999999
bench MODEL --variants torch-fp64
bench MODEL --variants ,
bench MODEL --device tpu
bench MODEL --device cuda:99999999999999999999
demo nowhere
run
run FOLDER
run nowhere.py
run /dev/null
run FILE --prune_sparsity
run FILE --prune_sparsity much
run FILE --prune_sparsity 2
run FILE --prune_sparsity nan
run FILE --prune_every HUGE
run FILE --prune_every 0
run FILE --prune_exclude (.+)+x
run FILE --prune_exclude (
run FILE --quant_scheme int3
run FILE --quant_bits embeddings=HUGE
run FILE --quant_bits embeddings
run FILE --compress_budget_mb -1
run FILE --compress_budget_mb inf
run FILE --compress_recipe nothing
run FILE --compress_config nowhere.yaml
run FILE --compress_config FOLDER
run FILE --compress_config BROKEN
run FILE --compress_config FILE
run FILE --compress_config /dev/zero
run FILE --compress_config /proc/self/mem
run FILE --compress_formats tar
run FILE --distill_temperature 0
run FILE --distill_alpha 2
run FILE --distill_teacher
run FILE --distill_layer_loss
run FILE --distill_layer_loss hidden
run FILE --distill_layer_loss hidden=nan
run FILE --distill_layer_loss nothing=1
run FILE --distill_layers 0-1
run FILE --distill_augment -1
run FILE --distill_augment 1.5
run FILE --distill_augment HUGE
run FILE --distill_extra
run FILE --distill_extra a:b:c:d
run FILE --distill_extra_share 1
run FILE --distill_extra_share nan
run FILE --prune_criterion oracle
run FILE --prune_criterion sparsegpt --prune_scope global
""".strip().splitlines()
REST = """
inspect nowhere
inspect no/such/path
inspect FILE
inspect FOLDER
inspect BROKEN
inspect /proc
inspect /proc/self/mem
inspect /dev/null
inspect MODEL MODEL
inspect MODEL BROKEN
inspect --markdown FILE
inspect FOLDER/x
inspect FILE/x
finish nowhere
finish FILE
finish FILE/x
finish FOLDER
finish BROKEN
finish MODEL
finish /proc
push nowhere a/b
push FILE a/b
push FOLDER a/b
push BROKEN a/b
push MODEL a/b
push MODEL not/an/id
push MODEL ..
bench nowhere
bench FILE
bench FOLDER
bench BROKEN
bench /proc
bench MODEL nowhere
demo --out FILE
demo --out FILE/x
demo --out BROKEN
demo --out /proc/x
""".strip().splitlines()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths that the command lines name."""
    from tests.tiny import bert

    root = tmp_path_factory.mktemp("misuse")
    (root / "folder").mkdir()
    (root / "file.json").write_text("{not JSON")
    (root / "broken").mkdir()
    for name in ("config.json", "report.json", "recipe.json", "model.safetensors", "README.md", "size.png"):
        (root / "broken" / name).write_bytes(b"\xff{broken\x00" * 3)
    model: BertForSequenceClassification = bert()
    save_compressed(model, root / "model", Recipe())
    model.save_pretrained(root / "dense")
    names = {"FOLDER": "folder", "FILE": "file.json", "BROKEN": "broken", "MODEL": "model", "DENSE": "dense"}
    return {word: str(root / name) for word, name in names.items()} | {"HUGE": HUGE}


def spoken(line: str, places: dict[str, str]) -> list[str]:
    words = []
    for word in line.split():
        for name, path in places.items():
            word = word.replace(name, path)
        words.append(word)
    return words


@pytest.mark.parametrize(("line", "status"), [(line, 2) for line in USAGE] + [(line, 1) for line in REST])
def test_misuse_ends_with_one_sentence_and_writes_nothing(
    line: str, status: int, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {
        path: path.stat().st_mtime_ns for place in places.values() if place != HUGE for path in tree(Path(place))
    }
    result = CliRunner(env={"COLUMNS": "500"}).invoke(app, spoken(line, places))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == status, result.output
    said = [text for text in result.stderr.splitlines() if text.strip()]
    if line != "run":  # Shows its help.
        assert any("Error" in text or "Missing" in text for text in said), result.output
        assert len(result.stderr) < 3000
    assert "Traceback" not in result.output
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list(tmp_path.iterdir())


def tree(place: Path) -> list[Path]:
    return [place, *place.rglob("*")] if place.is_dir() else [place]
