"""Two processes that train together, and the round trip that every model must pass: train, save, load, compare."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Seq2SeqTrainingArguments, Trainer, default_data_collator

from hf_compress.checkpoint.inventory import TensorFacts, tensors
from hf_compress.checkpoint.save import save_compressed
from hf_compress.distill import DistillationArguments, DistillationTrainer
from hf_compress.models.heads import find_head
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from tests.invariants.harness import in_two_processes

SPARSITY = 0.6


@dataclass(frozen=True)
class RoundTrip:
    """A model as trained, as stored and as reloaded, with its logits (start and end for question answering)."""

    trained: PreTrainedModel
    reloaded: PreTrainedModel
    facts: list[TensorFacts]
    pruned: set[str]
    quantized: set[str]
    before: tuple[torch.Tensor, ...]
    after: tuple[torch.Tensor, ...]
    again: tuple[torch.Tensor, ...]

    def check(self) -> None:
        """Check that training changed the logits, loading changed no bit, and pruned layers have their sparsity."""
        for before, after, again in zip(self.before, self.after, self.again, strict=True):
            assert after.isfinite().all() and not torch.equal(before, after)
            assert torch.equal(after, again)
        weights = {facts.name.removesuffix(".weight"): facts for facts in self.facts if facts.name.endswith(".weight")}
        assert self.pruned
        assert all(weights[name].zeros >= round(SPARSITY * weights[name].numel) for name in self.pruned)
        # Rounding alone makes only a few zeros.
        dense = [weights[name] for name in set(weights) - self.pruned if len(weights[name].shape) > 1]
        assert all(facts.sparsity < 0.25 for facts in dense)
        stored = self.quantized & set(weights)  # A tied weight is stored under one of its names.
        assert stored and all(weights[name].codec != "raw" for name in stored)


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes wrote to, which ran the function `work` of the test's file together."""
    folder = tmp_path_factory.mktemp("two")
    assert in_two_processes(request.module.work, folder) == [0, 0]
    return folder


@pytest.fixture
def round_trip(tmp_path: Path) -> Callable[..., RoundTrip]:
    """A function that trains a model on rows of inputs with all methods, saves it and loads it."""

    def run(
        model: PreTrainedModel,
        rows: list[dict[str, Any]],
        scheme: str = "int8",
        trainer_class: type[Trainer] = DistillationTrainer,
        **quantization: Any,
    ) -> RoundTrip:
        recipe = Recipe(
            DistillationArguments(distill_teacher="self"),
            PruningArguments(prune_sparsity=SPARSITY, prune_every=1),
            QuantizationArguments(quant_scheme=scheme, **quantization),
        )
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / "training"),
            max_steps=5,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        head, inputs = find_head(model), default_data_collator(rows[:3])

        def logits(of: PreTrainedModel) -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                return head.logits(of.eval()(**inputs))

        before = logits(model)
        trainer = trainer_class(
            model, arguments, train_dataset=rows, distillation=recipe.distillation, callbacks=recipe.callbacks()
        )
        trainer.train()
        folder = save_compressed(model, tmp_path / "compressed", recipe)
        reloaded = head.auto_class.from_pretrained(folder)
        assert type(reloaded) is type(model)
        config = reloaded.config.quantization_config
        return RoundTrip(
            model,
            reloaded,
            tensors(folder),
            set(config.pruned),
            set(config.quantized),
            before,
            logits(model),
            logits(reloaded),
        )

    return run
