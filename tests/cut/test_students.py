"""Students cut from a model: the right layers, every architecture, saved and loaded, and refused where it is wrong."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    PreTrainedModel,
    set_seed,
)

from hf_compress import (
    DatasetFacts,
    DistillationArguments,
    DistillationTrainer,
    Recipe,
    measure,
    save_compressed,
    student_from,
)
from hf_compress.cut.students import evenly_spaced, parse_layers
from hf_compress.models.heads import find_head
from hf_compress.models.stacks import layers_config, stack_of
from hf_compress.report.card import render
from tests.invariants.harness import make, same, trained
from tests.invariants.test_images_and_sounds import CASES as MEDIA
from tests.invariants.test_images_and_sounds import build
from tests.invariants.test_models import CONFIGS, MASKED, SEQ2SEQ, SEQUENCE, TOKENS, VOCABULARY
from tests.tiny import bert

DEPTH, KEPT = 4, [0, 2, 3]
# Where a model of this kind keeps its lists of layers; ALBERT has none.
STACKS = {
    "bert": ["bert.encoder.layer"],
    "roberta": ["roberta.encoder.layer"],
    "distilbert": ["distilbert.transformer.layer"],
    "electra": ["electra.encoder.layer"],
    "deberta-v2": ["deberta.encoder.layer"],
    "mpnet": ["mpnet.encoder.layer"],
    "xlm-roberta": ["roberta.encoder.layer"],
    "modernbert": ["model.layers"],
    "gpt2": ["transformer.h"],
    "llama": ["model.layers"],
    "t5": ["encoder.block", "decoder.block"],
    "bart": ["model.encoder.layers", "model.decoder.layers"],
}
KINDS = [
    *((name, SEQUENCE) for name in STACKS if name not in ("t5", "bart")),
    *((name, MASKED) for name in ("bert", "modernbert", "deberta-v2")),
    *((name, AutoModelForCausalLM) for name in ("gpt2", "llama")),
    *((name, SEQ2SEQ) for name in ("t5", "bart")),
]


def deep(name: str, auto_class: Any, depth: int = DEPTH) -> PreTrainedModel:
    """A tiny model of an architecture with `depth` layers in each of its stacks."""
    shallow = CONFIGS[name]()
    depths = {"t5": ["num_layers", "num_decoder_layers"], "bart": ["encoder_layers", "decoder_layers"]}
    fields = depths.get(name, [shallow.attribute_map.get("num_hidden_layers", "num_hidden_layers")])
    # Kinds of attention by layer are made anew for the new number of layers.
    settings = {
        key: value for key, value in shallow.to_dict().items() if key not in ("layer_types", "num_hidden_layers")
    }
    config = type(shallow)(**settings | dict.fromkeys(fields, depth))
    set_seed(0)
    return auto_class.from_config(config).eval()


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, VOCABULARY, (3, TOKENS), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: PreTrainedModel) -> torch.Tensor:
    batch = inputs() | ({"decoder_input_ids": inputs(1)["input_ids"]} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        return model(**batch, use_cache=False).logits if model.can_generate() else model(**batch).logits


@pytest.mark.parametrize(("name", "auto_class"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_student_computes_with_its_kept_layers_only(name: str, auto_class: Any, tmp_path: Path) -> None:
    model = deep(name, auto_class)
    before = copy.deepcopy(model.state_dict())
    student = student_from(model, KEPT)
    # The oracle: the other layers taken out of the lists by hand, the config left alone.
    shortened = copy.deepcopy(model)
    for stack in STACKS[name]:
        owner, _, attribute = stack.rpartition(".")
        layers = shortened.get_submodule(stack)
        assert len(layers) == DEPTH
        setattr(shortened.get_submodule(owner), attribute, nn.ModuleList(layers[number] for number in KEPT))
    assert torch.equal(logits(student), logits(shortened))
    assert student.num_parameters() == shortened.num_parameters() < model.num_parameters()
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in student.state_dict().values()}
    assert same(model.state_dict(), before)
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(student))


@pytest.mark.parametrize("name", ["t5", "modernbert", "bart", "llama"])
def test_a_student_is_described_by_its_config_layer_by_layer(name: str) -> None:
    model = deep(name, SEQ2SEQ if name in ("t5", "bart") else SEQUENCE)
    config = student_from(model, [0, 3]).config
    assert config.num_hidden_layers == 2
    if name == "t5":
        assert config.num_decoder_layers == 2
    if name == "bart":
        assert config.decoder_layers == 2
    if name == "modernbert":
        assert (
            config.layer_types == [model.config.layer_types[0], model.config.layer_types[3]] == ["full_attention"] * 2
        )
    assert model.config.num_hidden_layers == DEPTH


@pytest.mark.parametrize("name", ["clip", "whisper"])
def test_a_tower_or_an_encoder_alone_is_cut(name: str, tmp_path: Path) -> None:
    case = next(case for case in MEDIA if case.config == name)
    model = build(case).eval()
    student, (stack, layers) = student_from(model, [1]), stack_of(model)
    owner, _, attribute = stack.rpartition(".")
    shortened = copy.deepcopy(model)
    setattr(shortened.get_submodule(owner), attribute, nn.ModuleList([copy.deepcopy(layers[1])]))
    batch = find_head(model).example_batch(model)
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        found = [one(**batch).logits for one in (shortened, student, case.auto_class.from_pretrained(tmp_path))]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert layers_config(student).num_hidden_layers == 1 and layers_config(model).num_hidden_layers == 2


def test_cutting_layers_with_shared_weights_warns(caplog: Any) -> None:
    model = deep("albert", SEQUENCE)
    student = student_from(model, KEPT)
    fewer = copy.deepcopy(model)
    fewer.config.num_hidden_layers = fewer.albert.encoder.config.num_hidden_layers = len(KEPT)
    assert torch.equal(logits(student), logits(fewer))
    assert not torch.equal(logits(student), logits(model))
    assert student.num_parameters() == model.num_parameters()
    assert "its file is not smaller" in caplog.text


def test_what_all_layers_have_of_the_first_is_kept_without_it() -> None:
    model = deep("t5", SEQ2SEQ)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    student = student_from(model, [1, 3])
    assert torch.equal(student.state_dict()[bias], model.state_dict()[bias])


def test_a_student_keeps_dtype_frozen_weights_ties_and_mode() -> None:
    model = deep("bert", MASKED).to(torch.bfloat16).train()
    model.bert.embeddings.requires_grad_(False)
    student = student_from(model, 2)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in student.named_parameters() if name.startswith("bert.embeddings")}
    assert student.training and student.config._attn_implementation == model.config._attn_implementation


def test_cutting_draws_no_random_number() -> None:
    model = bert(num_hidden_layers=4)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    student_from(model, 2)
    assert torch.equal(torch.rand(2), expected)


def test_a_number_of_layers_spreads_them_evenly() -> None:
    assert [evenly_spaced(count, 6) for count in range(1, 7)] == [
        [0],
        [0, 5],
        [0, 2, 5],
        [0, 2, 3, 5],
        [0, 1, 2, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    assert evenly_spaced(6, 12) == [0, 2, 4, 7, 9, 11]  # As DistilBERT was cut from BERT.
    for depth in range(1, 30):
        for count in range(1, depth + 1):
            found = evenly_spaced(count, depth)
            assert len(set(found)) == count and found == sorted(found) and found[0] == 0
            assert found[-1] == (depth - 1 if count > 1 else 0)
    model = bert(num_hidden_layers=6)
    assert same(student_from(model, 3).state_dict(), student_from(model, [0, 2, 5]).state_dict())


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (0, "from 1 to 4, the number of the model's layers; got 0"),
        (5, "from 1 to 4, the number of the model's layers; got 5"),
        ([], "from 0 to 3, because the model has 4; got none"),
        ([0, 4], "from 0 to 3, because the model has 4; got 0,4"),
        ([-1], "from 0 to 3"),
        ([0, 2, 2], "each layer once, in ascending order; got 0,2,2. Give 0,2"),
        ([2, 0], "each layer once, in ascending order; got 2,0. Give 0,2"),
    ],
)
def test_missing_repeated_or_unsorted_layers_are_refused(layers: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"`--distill_student_layers`.*{said}"):
        student_from(bert(num_hidden_layers=4), layers)


def test_models_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit ModernBert.*attn_norm.*Keep layer 0"):
        student_from(deep("modernbert", SEQUENCE), [1, 3])
    with pytest.raises(ValueError, match="got a Linear. Cut the model inside"):
        student_from(nn.Linear(2, 2), 1)  # type: ignore[arg-type]
    by_number = GPT2Config(n_embd=8, n_head=2, n_layer=3, vocab_size=9, scale_attn_by_inverse_layer_idx=True)
    for name in ("swin", "convnext"):
        with pytest.raises(ValueError, match="its layers are not a list of `config.num_hidden_layers` equal ones"):
            student_from(build(next(case for case in MEDIA if case.config == name)), 1)
    with pytest.raises(ValueError, match="cannot cut GPT2LMHeadModel"):
        student_from(AutoModelForCausalLM.from_config(by_number), 2)


@pytest.mark.parametrize(
    ("text", "layers"), [("3", 3), ("0,2,5", [0, 2, 5]), (" 0, 2 ,5", [0, 2, 5]), ("5,", [5]), ("12", 12)]
)
def test_the_flag_takes_a_number_or_a_list(text: str, layers: Any) -> None:
    assert parse_layers(text) == layers
    assert DistillationArguments(distill_student_layers=text).student_layers == layers


@pytest.mark.parametrize("text", ["", "three", "1.5", "0-3", ",", "-1"])
def test_the_flag_refuses_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="`--distill_student_layers` must be a number of layers, such as 3"):
        DistillationArguments(distill_student_layers=text)


def cut(layers: str, teacher: str | None = "self", **more: Any) -> Recipe:
    return Recipe(DistillationArguments(distill_teacher=teacher, distill_student_layers=layers, **more))


def with_plan(plan: Recipe, **more: Any) -> dict[str, Any]:
    """What `harness.make` takes to train by the whole of `plan`."""
    return {"plan": plan, "build": {"distillation": plan.distillation, **more.pop("build", {})}, **more}


def test_the_whole_model_teaches_the_student_cut_from_it(tmp_path: Path) -> None:
    model = bert(num_hidden_layers=4)
    run = make(tmp_path, model=model, **with_plan(cut("0,3")))
    assert isinstance(run, DistillationTrainer) and run.teacher is not None
    assert run.model.config.num_hidden_layers == 2 and run.teacher.config.num_hidden_layers == 4
    assert same(run.teacher.state_dict(), model.state_dict()) and run.teacher is not model
    assert same(run.model.state_dict(), student_from(model, [0, 3]).state_dict())
    run.train()
    assert same(run.teacher.state_dict(), model.state_dict())
    assert not same(run.model.state_dict(), student_from(model, [0, 3]).state_dict())


def test_a_student_is_cut_with_any_teacher_or_none(tmp_path: Path) -> None:
    run = make(tmp_path, model=bert(num_hidden_layers=4), **with_plan(cut("1", None)))
    assert run.model.config.num_hidden_layers == 1 and run.teacher is None
    plan = cut("1", None)
    teacher = bert(num_hidden_layers=4)
    run = make(tmp_path, model=teacher, **with_plan(plan, build={"teacher": teacher}))
    assert run.model.config.num_hidden_layers == 1 and run.teacher is teacher


def test_a_student_cut_by_hand_trains_to_the_same_bits(tmp_path: Path) -> None:
    model = bert(num_hidden_layers=4)
    flagged = trained(tmp_path / "a", model=model, **with_plan(cut("2")))
    by_hand = trained(tmp_path / "b", model=student_from(model, 2), build={"teacher": model})
    assert same(flagged.model.state_dict(), by_hand.model.state_dict())


def test_a_model_that_is_built_anew_is_cut_every_time(tmp_path: Path) -> None:
    plan = cut("1", None)
    run = make(tmp_path, **with_plan(plan, build={"model_init": lambda: bert(num_hidden_layers=3)}))
    run.train()
    assert run.model.config.num_hidden_layers == 1


def test_a_cut_student_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def run(folder: str) -> Any:
        saving = {"save_strategy": "steps", "save_steps": 6}
        return make(tmp_path / folder, model=bert(num_hidden_layers=4), **with_plan(cut("2")), **saving)

    whole = run("a")
    whole.train()
    resumed = run("b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    other = make(tmp_path / "c", model=bert(num_hidden_layers=4), **with_plan(cut("0,1")))
    with pytest.raises(ValueError, match="`--distill_student_layers` is 0,1, but was 2"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))


def test_a_student_goes_through_the_packed_file_bit_for_bit(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", model=bert(num_hidden_layers=4), **with_plan(cut("2")))
    folder = save_compressed(run.model, tmp_path / "compressed", cut("2"))
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert reloaded.config.num_hidden_layers == 2
    batch = {"input_ids": torch.arange(5, 13)[None]}
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, run.model.eval()(**batch).logits)


def test_a_students_report_compares_it_with_the_whole_model(tmp_path: Path) -> None:
    model, plan = bert(num_hidden_layers=4), cut("0,3", None)
    build = {"compute_metrics": lambda prediction: {"accuracy": 1.0}}
    run = trained(tmp_path / "run", model=model, **with_plan(plan, build=build))
    folder = save_compressed(run.model, tmp_path / "compressed", plan)
    facts = DatasetFacts("rows", None, "train", 64, "test", 16)
    report = measure(
        run, folder, plan, base_model="b", task="t", dataset=facts, main_metric="accuracy", dense={"accuracy": 1.0}
    )
    model.save_pretrained(tmp_path / "dense")
    assert report.size.dense_bytes == (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert report.size.analytic_bytes == 4 * run.model.num_parameters()
    card = render(report)
    assert "cut down to fewer layers" in card and "layers 0 and 3 were kept" in card


def test_what_a_cut_would_leave_untrained_is_refused(tmp_path: Path) -> None:
    model = bert(num_hidden_layers=4)
    optimizers = (torch.optim.SGD(model.parameters(), 0.1), None)
    with pytest.raises(ValueError, match="`optimizers` hold the weights of the model before"):
        make(tmp_path, model=model, **with_plan(cut("2"), build={"optimizers": optimizers}))


def test_the_name_of_a_recipe_says_what_is_kept() -> None:
    assert cut("3").name == "cut3+kd"
    assert cut("0,2,5", None).name == "cut0.2.5"
    assert Recipe.from_dict(cut("0,2,5").to_dict()) == cut("0,2,5")
