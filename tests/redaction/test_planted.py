"""No file of a finished folder holds a secret that was planted in the run, nor the folders of its author."""

import json
import sys
from pathlib import Path

import pytest
import transformers
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser, TrainingArguments

import hf_compress
from hf_compress.redaction import found_secret
from tests.tiny import bert

AUTHOR = "planted_author"
IN_ARGV = "planted in argv, 1"
IN_FILE = "planted in the argument file"
IN_ENVIRONMENT = "planted in the environment"
IN_OUTPUT = "hf_" + "aB3" * 8
FORMATS = ["onnx", "openvino", "compressed-tensors"]
# Written by Trainer, and never part of what is published: the arguments hold the token.
NEVER = {"training_args.bin", "trainer_state.json", "optimizer.pt", "plan.json"}


def run(folder: Path, tokenizer: transformers.PreTrainedTokenizerFast, sentences: Dataset, formats: list[str]) -> Path:
    """Train and finish in a folder named after the author and a token, and return the finished folder."""
    home = folder / "home" / AUTHOR
    bert(0).save_pretrained(home / "dense")
    tokenizer.save_pretrained(home / "dense")
    loaded = AutoTokenizer.from_pretrained(home / "dense")
    model = AutoModelForSequenceClassification.from_pretrained(home / "dense")
    rows = sentences.map(lambda row: loaded(row["sentence"], padding="max_length", max_length=10))
    rows = rows.rename_column("label", "labels")
    output = home / "runs" / IN_OUTPUT
    settings = {"output_dir": str(output), "hub_token": IN_FILE, "max_steps": 4, "report_to": "none", "use_cpu": True}
    (home / "args.json").write_text(json.dumps(settings | {"save_steps": 2, "run_name": str(home)}), "utf-8")
    (arguments,) = HfArgumentParser(TrainingArguments).parse_json_file(str(home / "args.json"))
    sys.argv = [str(home / "train.py"), str(home / "args.json"), "--wandb_api_key", IN_ARGV, f"--data={home}/rows.csv"]
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=loaded,
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())},
    )
    recipe = hf_compress.Recipe(
        hf_compress.DistillationArguments(distill_teacher=str(home / "dense"), distill_cache=str(home / "cache")),
        hf_compress.PruningArguments(prune_sparsity=0.5, prune_every=1),
        hf_compress.QuantizationArguments(quant_scheme="int8"),
    )
    hf_compress.compress(trainer, recipe)
    trainer.train()
    hf_compress.finish(trainer, formats=formats, task=str(home / "films"))
    return output / "compressed"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_API_KEY", IN_ENVIRONMENT)
    monkeypatch.setattr("hf_compress.redaction.secrets._KEPT", set())
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
@pytest.mark.filterwarnings("ignore:.*prunes in one leap")
def test_no_file_of_a_result_holds_what_was_planted(
    tmp_path: Path, tiny_tokenizer: transformers.PreTrainedTokenizerFast, tiny_sentences: Dataset
) -> None:
    folder = run(tmp_path, tiny_tokenizer, tiny_sentences, FORMATS)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "report.json", "recipe.json", "config.json", "tokenizer_config.json"} <= files.keys()
    assert all(any(name.startswith(("onnx/", "openvino/", format)) for name in files) for format in FORMATS)
    forbidden = [IN_ARGV, IN_FILE, IN_ENVIRONMENT, IN_OUTPUT, AUTHOR, str(tmp_path), str(Path.cwd()), sys.prefix]
    wrong = [
        f"{name} holds {text}" for name, content in files.items() for text in forbidden if text.encode() in content
    ]
    assert not wrong, "\n".join(wrong)
    assert not [name for name in files if Path(name).name in NEVER]
    report = json.loads(files["report.json"])
    assert report["command"].endswith(" args.json --wandb_api_key REDACTED --data=rows.csv")
    assert (report["base_model"], report["task"]) == ("dense", "films")


@pytest.mark.usefixtures("planted")
def test_what_was_planted_is_found_in_any_text() -> None:
    """So the test above could fail: each would be removed from a text, and found in a file."""
    for secret in (IN_ENVIRONMENT, IN_OUTPUT):
        assert found_secret(f"x {secret} y") is not None
        assert secret not in hf_compress.redaction.redact(f"x {secret} y")
