"""Checkpoints of models whose weights have other names on the Hub are resumed, and the final model has those names."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, NomicBertConfig, PreTrainedModel, set_seed
from transformers.core_model_loading import revert_weight_conversion

from tests.invariants.harness import METHODS, checkpoints, make, same
from tests.tiny import SIZES

HUB, OWN = "nomic_bert.encoder.layers.0.attn.Wqkv.weight", "nomic_bert.layers.0.self_attn.q_proj.weight"


def nomic(seed: int = 0) -> PreTrainedModel:
    set_seed(seed)
    return AutoModelForSequenceClassification.from_config(NomicBertConfig(**SIZES, pad_token_id=0))


def run(folder: Path, methods: Any, seed: int = 0, **settings: Any) -> Any:
    return make(folder, methods, model=nomic(seed), teacher=nomic(1), **settings)


@pytest.mark.parametrize("methods", [(), METHODS], ids=["dense", "all"])
def test_a_model_with_other_names_on_the_hub_resumes(methods: Any, tmp_path: Path) -> None:
    whole = run(tmp_path, methods, save_strategy="steps", save_steps=5)
    whole.train()
    resumed = run(tmp_path, methods, seed=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


def test_its_checkpoints_load_with_from_pretrained(tmp_path: Path) -> None:
    trainer = run(tmp_path, (), save_strategy="steps", save_steps=12)
    trainer.train()
    (folder,) = (tmp_path / name for name in checkpoints(tmp_path))
    assert OWN in load_file(folder / "model.safetensors")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert same(dict(trainer.model.state_dict()), dict(loaded.state_dict()))


def test_its_best_model_is_loaded_and_saved_as_on_the_hub(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trainer = run(tmp_path, (), load_best_model_at_end=True, learning_rate=0.3, max_grad_norm=1e9, **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    kept, state = load_file(best / "model.safetensors"), dict(trainer.model.state_dict())
    assert best.name != "checkpoint-12" and same(kept, {name: state[name] for name in kept})
    trainer.save_model(str(tmp_path / "final"))
    assert HUB in load_file(tmp_path / "final" / "model.safetensors")
    assert HUB in revert_weight_conversion(trainer.model, state)
