"""The columns of the table in `docs/architectures.md`: what each method is asked to do with each architecture.

A method trains a few steps with `compress`, saves the packed file, loads it and compares the logits. What an
architecture cannot do must be refused before the first step, with a sentence that names the option.
"""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from hf_compress import (
    BudgetArguments,
    DistillationArguments,
    PruningArguments,
    QuantizationArguments,
    Recipe,
    compress,
    cut_vocabulary,
    save_compressed,
)
from hf_compress.export.formats import write_formats
from hf_compress.models.heads import Head, find_head
from hf_compress.models.stacks import layers_config
from hf_compress.quantize.spending import least_bytes
from tests.architectures.families import VOCABULARY, Family

YES, NOT_TEXT = "yes", "-"
STEPS, HALF = 6, 3
SELF, INT8 = DistillationArguments(distill_teacher="self"), QuantizationArguments("int8", quant_begin=0.3)
PRUNED = PruningArguments(prune_sparsity=0.6, prune_every=1)
# Sums of fewer numbers differ in their last bits.
CLOSE = 0.02


class Steps(TrainerCallback):
    """Counts the steps of training."""

    count = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.count += 1


class Bench:
    """A tiny model of one architecture, and a folder in which methods are tried on it."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder, self.steps = family, folder, Steps()

    def model(self) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built: PreTrainedModel = self.family.auto_class.from_config(self.family.config())
        return built.eval()

    def trainer(self, model: PreTrainedModel, name: str, **settings: Any) -> Trainer:
        arguments = {
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = TrainingArguments(str(self.folder / name), **arguments | settings)
        return Trainer(model, args, train_dataset=rows(model), callbacks=[self.steps])

    def trained(self, recipe: Recipe, *, exact: bool = True, **settings: Any) -> tuple[Trainer, PreTrainedModel]:
        """Train by `recipe`, save, load and compare; return the trainer and the loaded model.

        Args:
            exact: whether the loaded model has the same logits to the bit. Otherwise they are close.
        """
        model = self.model()
        before = logits(model)
        trainer = compress(self.trainer(model, "run", **settings), recipe)
        trainer.train()
        loaded = find_head(model).auto_class.from_pretrained(save_compressed(model, self.saved, recipe))
        for first, ours, theirs in zip(before, logits(model), logits(loaded), strict=True):
            assert ours.isfinite().all() and not torch.equal(first, ours), "nothing was learned"
            assert not exact or torch.equal(ours, theirs), "the loaded model differs"
            assert (ours - theirs).abs().max() <= CLOSE * ours.abs().max(), "the loaded model differs"
        return trainer, loaded

    @property
    def saved(self) -> Path:
        return self.folder / "compressed"


def rows(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Sixteen rows of random inputs with labels."""
    head: Head = find_head(model)
    batch = head.example_batch(model, rows=16)
    batch.pop("decoder_input_ids", None)
    labels = torch.arange(16) % 2
    if head.descriptor.predicts_tokens:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return [{name: value[row] for name, value in (batch | {"labels": labels}).items()} for row in range(16)]


@torch.no_grad()
def logits(model: PreTrainedModel, **inputs: Tensor) -> tuple[Tensor, ...]:
    head = find_head(model)
    return head.logits(model.eval()(**inputs or head.example_batch(model, rows=3)))


def alone(**methods: Any) -> Callable[[Bench], None]:
    """A method that needs no more than a recipe."""
    return lambda bench: (bench.trained(Recipe(**methods)), None)[1]


def layer_loss(name: str) -> Callable[[Bench], None]:
    return alone(distillation=DistillationArguments(distill_teacher="self", distill_layer_loss=[f"{name}=1"]))


def structure(pattern: str) -> Callable[[Bench], None]:
    def check(bench: Bench) -> None:
        pruning = PruningArguments(prune_sparsity=0.5, prune_every=1, prune_pattern=pattern)
        trainer, loaded = bench.trained(Recipe(pruning=pruning), exact=False)
        sizes = [sum(weight.numel() for weight in one.parameters()) for one in (trainer.model, loaded)]
        assert sizes[1] < sizes[0], "nothing was removed"

    return check


def uniform(bench: Bench) -> None:
    pruning = PruningArguments(prune_sparsity=0.5, prune_every=1, prune_pattern="neurons", prune_uniform=True)
    bench.trained(Recipe(pruning=pruning), exact=False)
    write_formats(bench.saved, ["dense"])  # Which stock Transformers loads.


def fewer_layers(bench: Bench) -> None:
    trainer, loaded = bench.trained(Recipe(pruning=PruningArguments(prune_layers=1)))
    depths = [layers_config(one).num_hidden_layers for one in (trainer.model, loaded)]
    assert depths[1] == depths[0] - 1


def budget(bench: Bench) -> None:
    megabytes = 2.5 * least_bytes(bench.model(), (), {}) / 1e6
    bench.trained(Recipe(budget=BudgetArguments(compress_budget_mb=megabytes)))
    assert (bench.saved / "model.safetensors").stat().st_size <= 1e6 * megabytes


def vocabulary(bench: Bench) -> None:
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    letters = "abcd"
    words = ["".join(chosen) for length in (2, 3) for chosen in itertools.product(letters, repeat=length)]
    pieces = [*special.values(), *letters, *(f"##{letter}" for letter in letters)]
    tokens = (pieces + words)[:VOCABULARY]
    words = tokens[len(pieces) :]
    built = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, **special)
    model, texts = bench.model(), [" ".join(words[:20]), " ".join(words[20:10:-1] + words[:10])]
    cut, shorter = cut_vocabulary(model, tokenizer, texts)
    assert cut.config.get_text_config().vocab_size < VOCABULARY

    def read(by: Any, of: PreTrainedModel) -> tuple[Tensor, ...]:
        ids = by(texts, return_tensors="pt")["input_ids"]
        return logits(of, input_ids=ids, attention_mask=torch.ones_like(ids))

    for whole, ours in zip(read(tokenizer, model), read(shorter, cut), strict=True):
        torch.testing.assert_close(ours, whole)
    recipe = Recipe(quantization=INT8)
    compress(bench.trainer(cut, "run"), recipe).train()
    loaded = find_head(cut).auto_class.from_pretrained(save_compressed(cut, bench.saved, recipe))
    assert all(map(torch.equal, logits(cut), logits(loaded)))


def resumed(bench: Bench) -> None:
    recipe = Recipe(SELF, PRUNED, INT8)
    whole, _ = bench.trained(recipe, save_strategy="steps", save_steps=HALF)
    shutil.rmtree(bench.saved)
    again = compress(bench.trainer(bench.model(), "again"), recipe)
    again.train(resume_from_checkpoint=str(bench.folder / "run" / f"checkpoint-{HALF}"))
    ours, theirs = (one.model.state_dict() for one in (whole, again))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), "the resumed model differs"


def exported(name: str) -> Callable[[Bench], None]:
    def check(bench: Bench) -> None:
        bench.trained(Recipe(quantization=INT8))
        write_formats(bench.saved, [name])  # Compared with the packed file, or it fails.

    return check


@dataclass(frozen=True)
class Method:
    """A column of the table.

    Args:
        title: its heading.
        option: what is asked for, as the page says it.
        check: tries it; raises `ValueError` for a refusal before training.
        text: whether it is for models that read text only.
    """

    title: str
    option: str
    check: Callable[[Bench], None]
    text: bool = False


METHODS = [
    Method("distil", "`--distill_teacher`: the outputs of a teacher", alone(distillation=SELF)),
    Method("hidden", "`--distill_layer_loss hidden=1`: the outputs of layers", layer_loss("hidden")),
    Method("attention", "`--distill_layer_loss attention=1`: attention maps", layer_loss("attention")),
    Method(
        "relations",
        "`--distill_layer_loss relations=1`: relations of queries, keys and values",
        layer_loss("relations"),
    ),
    Method("prune", "`--prune_sparsity`: single weights", alone(pruning=PRUNED)),
    Method(
        "neurons", "`--prune_pattern neurons`: neurons of feed-forwards, removed from the file", structure("neurons")
    ),
    Method("heads", "`--prune_pattern heads`: heads of attention, removed from the file", structure("heads")),
    Method("uniform", "`--prune_uniform`: as many neurons in every layer, for stock Transformers", uniform),
    Method("layers", "`--prune_layers`: whole layers, removed from the file", fewer_layers),
    Method("int8", "`--quant_scheme int8`: weights and the inputs of layers", alone(quantization=INT8)),
    Method(
        "int8 attention",
        "`--quant_scheme int8-attention`: the products of attention, too",
        alone(quantization=QuantizationArguments("int8-attention", quant_begin=0.3)),
    ),
    Method("budget", "`--compress_budget_mb`: steps for a number of bytes", budget),
    Method("vocabulary", "`--compress_vocabulary`: fewer tokens, then `int8`", vocabulary, text=True),
    Method("resume", "teacher, pruning and `int8` together, resumed from half of the steps, bit for bit", resumed),
    Method("ONNX", "`--compress_formats onnx` of the `int8` model, run and compared", exported("onnx")),
    Method("OpenVINO", "`--compress_formats openvino` of the `int8` model, likewise", exported("openvino")),
]


def outcome(family: Family, method: Method, folder: Path) -> str:
    """Return `YES`, `NOT_TEXT`, or the sentence by which the method is refused before training.

    Raises:
        AssertionError: it is refused after training began, or in words that name no option.
    """
    if method.text and family.kind in ("image", "sound"):
        return NOT_TEXT
    bench = Bench(family, folder)
    try:
        method.check(bench)
    except ValueError as error:
        if bench.steps.count or "`--" not in str(error):
            raise AssertionError(f"{method.title} failed after {bench.steps.count} steps: {error}") from error
        return str(error)
    return YES
