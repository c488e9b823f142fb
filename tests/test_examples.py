"""The examples: without their marked lines they are ordinary scripts, and the launcher makes the same of those."""

import ast
import itertools
import json
import re
import runpy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_compress.launch import launcher as launch
from hf_compress.report.report import Report

EXAMPLES = Path(__file__).parents[1] / "examples"
MARKED = re.compile(r"^ *# --- hf_compress: begin ---\n.*?^ *# --- hf_compress: end ---\n", re.DOTALL | re.MULTILINE)
SCRIPTS = ["run_ner", "run_qa", "run_mlm", "run_summarization", "train_sft"]
FLAGS = ["--prune_sparsity", "0.5", "--prune_every", "1", "--quant_scheme", "int8"]
SMALL = "--max_steps 8 --per_device_train_batch_size 4 --learning_rate 1e-3 --use_cpu --save_strategy no"
SMALL += " --disable_tqdm true --report_to none"
BERT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def plain(script: str) -> str:
    """The example without its marked lines."""
    return MARKED.sub("", (EXAMPLES / f"{script}.py").read_text())


@pytest.fixture
def tiny(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[[str], list[str]]:
    """A function that gives the options of a script: a tiny model for it and rows, both made on the spot."""

    def make(script: str) -> list[str]:
        size = len(tiny_tokenizer)
        models: dict[str, Callable[[], Any]] = {
            "run_ner": lambda: BertForTokenClassification(BertConfig(vocab_size=size, **BERT)),
            "run_qa": lambda: BertForQuestionAnswering(BertConfig(vocab_size=size, **BERT)),
            "run_mlm": lambda: BertForMaskedLM(BertConfig(vocab_size=size, **BERT)),
            "run_summarization": lambda: T5ForConditionalGeneration(
                T5Config(
                    vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
                )
            ),
            "train_sft": lambda: GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=size,
                    n_positions=32,
                    n_embd=32,
                    n_layer=1,
                    n_head=2,
                    bos_token_id=2,
                    eos_token_id=3,
                    pad_token_id=0,
                )
            ),
        }
        models[script]().save_pretrained(tmp_path / "model")
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        rows = []
        for index, (thing, word) in zip(
            range(24), itertools.cycle(itertools.product(("film", "song"), ("warm", "dull")))
        ):
            text = f"the {thing} was {word}" + " today" * (index % 3)
            words, at = text.split(), text.index(word)
            columns: dict[str, dict[str, Any]] = {
                "run_ner": {"tokens": words, "tags": ["thing" if word == thing else "o" for word in words]},
                "run_qa": {"question": f"the {thing}", "context": text, "answer": word, "answer_start": at},
                "run_summarization": {"document": text, "summary": f"{thing} {word}"},
            }
            rows.append(columns.get(script, {"text": text}))
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = str(tmp_path / "rows.jsonl")
        options = ["--model_name_or_path", str(tmp_path / "model"), "--train_file", file, "--validation_file", file]
        extra = "--predict_with_generate --generation_max_length 6" if script == "run_summarization" else ""
        return [*options, *SMALL.split(), *extra.split()]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_marked_lines_do_what_the_launcher_does(
    script: str, tiny: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tiny(script)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / f"{script}.py"), *options, "--output_dir", str(ours), *FLAGS])
    runpy.run_path(sys.argv[0], run_name="__main__")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / f"{script}.py").write_text(plain(script))
    assert launch.main([str(tmp_path / "plain" / f"{script}.py"), *options, "--output_dir", str(theirs), *FLAGS]) == 0
    one, other = (Report.load(folder / "compressed") for folder in (ours, theirs))
    weights = [(folder / "compressed" / "model.safetensors").read_bytes() for folder in (ours, theirs)]
    assert weights[0] == weights[1]
    assert one.compressed == other.compressed
    assert one.dense == other.dense
    assert one.dense is not None
    assert one.parity == 0
    assert one.achieved_sparsity >= 0.5


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_the_marked_lines_nothing_of_ours_is_left(script: str) -> None:
    code = plain(script)
    assert "import hf_compress" not in code
    assert "flags" not in code.split('"""', 2)[2]
    compile(code, script, "exec")
    marked = MARKED.findall((EXAMPLES / f"{script}.py").read_text())
    statements = [statement for block in marked for statement in ast.parse(textwrap.dedent(block)).body]
    assert len(statements) == 6, "an import, the flags and their options, `compress`, `finish` and the exit status"


@pytest.mark.slow
def test_the_quickstart_leaves_a_model_with_report_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    report = Report.load(tmp_path / "out" / "compressed")
    assert report.recipe.name == "mp60+int8"
    assert (tmp_path / "out" / "compressed" / "README.md").is_file()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "compressed") is not None


@pytest.mark.parametrize("file", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_knows_all_that_its_configurations_say(file: Path) -> None:
    config = load_config_from_file(str(file))
    said = yaml.safe_load(file.read_text())
    assert config.num_processes == said["num_processes"]
    assert set(said) <= set(vars(config))
