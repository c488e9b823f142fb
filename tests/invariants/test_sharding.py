"""Weights sharded by FSDP2 get the masks, ranges and file of one process; other kinds of sharding are refused."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import (
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    TrainerControl,
    TrainerState,
)
from transformers.distributed import DistributedConfig
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from hf_compress import PruningArguments, QuantizationArguments, Recipe
from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.sharding import Shards, count_zeros, gathered, local, refuse_shards, reshard
from hf_compress.models.targets import prunable
from hf_compress.prune import selection as under_test
from hf_compress.prune.callback import PruningCallback
from hf_compress.prune.criteria import magnitude_masks
from hf_compress.prune.selection import SCOPES, disagreements
from hf_compress.quantize.callback import QuantizationCallback
from tests.invariants.harness import (
    METHODS,
    fsdp,
    in_a_process,
    in_two_processes,
    logged,
    make,
    persuade,
    recipe,
    rows,
    same,
)
from tests.tiny import NO_DROPOUT, bert

pytestmark = pytest.mark.slow  # Almost all need what two processes left.

# An even number of rows, an odd one, and fewer rows than processes: then the second process has none.
SHAPES = [(48, 64), (7, 129), (1, 40), (3, 5), (1, 40)]
SHARES = [0.0, 0.01, 0.3, 0.6, 1.0]
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "distinct": lambda values: values,
    "double": Tensor.double,
    "tied": lambda values: values.round(decimals=1),
    "bf16": Tensor.bfloat16,
    "half zero": lambda values: values * (values > 0),
    "constant": lambda values: torch.full_like(values, -0.7),
    "infinite": lambda values: values / (values > 0.5),
}


class Held(nn.Module):
    """Draw weights by the method `draw`, the same on every process."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = [DRAWS[draw](torch.randn(shape, generator=generator)) for shape in SHAPES]
        self.weights = nn.ParameterList(drawn)


def masks_of(held: Held) -> dict[str, list[Tensor]]:
    """Return the masks of this process's part, for every scope and sparsity."""
    weights = list(held.weights)
    return {f"{scope} {share}": magnitude_masks(weights, share, scope) for scope in SCOPES for share in SHARES}


def choose(folder: Path) -> None:
    """Write masks and counts of this process's part, and its error for weights that are NaN."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {}
    for draw in DRAWS:
        held = fully_shard(Held(draw), mesh=mesh)
        found[draw] = masks_of(held)
        found[f"{draw}, zeros"] = count_zeros(list(held.weights))
    bracket = under_test._bracket
    for low, high in [(-1.0, -1.0), (5.0, 6.0), (0.0, 1e-9)]:
        under_test._bracket = lambda *_, bracket=(low, high): (yield from ()) or bracket
        found[f"misled to {low}"] = masks_of(fully_shard(Held("tied"), mesh=mesh))
    under_test._bracket = bracket

    held = fully_shard(Held("distinct"), mesh=mesh)
    if rank == 1:
        local(held.weights[1])[0, 0] = float("nan")
    try:
        masks_of(held)
    except ValueError as error:
        found["said"] = str(error)

    hybrid = fully_shard(Held("tied"), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "rows")))
    found["hybrid"] = masks_of(hybrid)
    weights = list(hybrid.weights)
    same_masks = disagreements(magnitude_masks(weights, 0.5, "layer"), Shards.of(weights))
    if rank == 1:
        local(weights[3]).copy_(local(weights[3]).flip(0))
    other_masks = disagreements(magnitude_masks(weights, 0.5, "layer"), Shards.of(weights))
    found["disagreements"] = same_masks, other_masks
    torch.save(found, folder / f"masks-{rank}.pt")


# Arguments of `fully_shard`, modules that are sharded separately, and the recipe.
PLANS: dict[str, tuple[dict[str, Any], tuple[str, ...], Recipe]] = {
    "by layer": ({}, (), recipe(METHODS)),
    "in units, global": (
        {},
        ("bert.encoder.layer.0", "bert.embeddings.word_embeddings"),
        Recipe(
            pruning=PruningArguments(prune_sparsity=0.6, prune_every=2, prune_scope="global"),
            quantization=QuantizationArguments(quant_scheme="int4-weight", quant_begin=0.3),
        ),
    ),
    "left whole after evaluation": ({"reshard_after_forward": False}, ("bert.encoder.layer.0",), recipe(METHODS)),
    "hybrid": ({"mesh": (2, 1)}, (), recipe(METHODS)),
    "bf16": (
        {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
        ("bert.encoder.layer.0",),
        Recipe(
            pruning=PruningArguments(prune_sparsity=0.6, prune_every=2),
            quantization=QuantizationArguments(quant_scheme="int8-weight", quant_begin=0.3),
        ),
    ),
    "stored as it is": ({}, (), Recipe()),
}


def odd_bert() -> BertForSequenceClassification:
    """Build a BERT of odd sizes; with one token type and one output, the second process has no row of them."""
    sizes = {
        "vocab_size": 41,
        "hidden_size": 6,
        "intermediate_size": 9,
        "type_vocab_size": 1,
        "num_labels": 1,
        "num_hidden_layers": 1,
    }
    return bert(**sizes, **NO_DROPOUT)


def train(
    model: PreTrainedModel,
    plan: Recipe,
    shard: Callable[[nn.Module], None],
    folder: Path,
    batch: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Train with AdamW, evaluate after each step; `shard` is called where a Trainer wraps the model."""
    pruning, quantization = PruningCallback, QuantizationCallback
    callbacks = [callback for callback in plan.callbacks() if isinstance(callback, pruning | quantization)]
    args = SimpleNamespace(n_gpu=1, load_best_model_at_end=False, gradient_accumulation_steps=1)
    state = TrainerState(max_steps=6)

    def call(event: str) -> None:
        for callback in callbacks:
            getattr(callback, event)(args, state, TrainerControl(), model=model)

    call("on_init_end")
    shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.1)
    if batch is None:
        batch = {name: torch.stack([row[name] for row in rows(16)]) for name in rows(1)[0]}
        batch["labels"] = batch["labels"].float()
    call("on_train_begin")
    losses, zeros = [], []
    for step in range(6):
        call("on_step_begin")
        loss = model.train()(**batch).loss
        loss.backward()
        call("on_pre_optimizer_step")
        optimizer.step()
        optimizer.zero_grad()
        call("on_optimizer_step")
        state.global_step += 1
        call("on_step_end")
        with torch.no_grad():
            evaluated = model.eval()(**batch)
        if step % 3 == 2:
            call("on_save")
        reshard(model)
        losses.append((loss.item(), evaluated.loss.item()))
        zeros.append(count_zeros([target.weight for target in prunable(model)]))
    call("on_train_end")
    folder = save_compressed(model, folder, plan)
    return {
        "weights": {name: gathered(value).detach().clone() for name, value in model.state_dict().items()},
        "zeros": zeros,
        "losses": losses,
        "logits": evaluated.logits,
    }


def in_rows(settings: dict[str, Any], units: tuple[str, ...]) -> Callable[[nn.Module], None]:
    """Return the function that shards a model in this way."""

    def shard(model: nn.Module) -> None:
        mesh = settings.get("mesh", (2,))
        names = ("replicas", "rows")[-len(mesh) :]
        given = settings | {"mesh": init_device_mesh("cpu", mesh, mesh_dim_names=names)}
        for name in units:
            fully_shard(model.get_submodule(name), **given)
        fully_shard(model, **given)

    return shard


def train_all(folder: Path) -> None:
    """Run every plan in one of two processes, on the same rows, so that gradient means equal one process's."""
    for name, (settings, units, plan) in PLANS.items():
        found = train(odd_bert(), plan, in_rows(settings, units), folder / name)
        torch.save(found, folder / f"{name}-{dist.get_rank()}.pt")
        dist.barrier()


def refuse(folder: Path) -> None:
    """Write the errors for other kinds of sharding, in one of two processes."""
    mesh = init_device_mesh("cpu", (2,))

    def flat(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)

    def flat_and_gone(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))

    def tensor_parallel(model: nn.Module) -> nn.Module:
        return parallelize_module(model, mesh, {"bert.pooler.dense": ColwiseParallel()})

    def by_columns(model: nn.Module) -> nn.Module:
        columns = {target.weight for target in prunable(model)}
        return fully_shard(model, mesh=mesh, shard_placement_fn=lambda one: Shard(1) if one in columns else None)

    def in_part(model: nn.Module) -> nn.Module:
        return fully_shard(model, mesh=mesh, ignored_params={model.bert.pooler.dense.weight})

    def beside_an_adapter(model: nn.Module) -> nn.Module:
        return fully_shard(get_peft_model(model, LoraConfig(TaskType.SEQ_CLS, target_modules=["query"])), mesh=mesh)

    said = {}
    for wrap in (flat, flat_and_gone, tensor_parallel, by_columns, in_part, beside_an_adapter):
        for option, callback in (
            ("--prune_sparsity", PruningCallback(PruningArguments(prune_sparsity=0.5))),
            ("--quant_scheme", QuantizationCallback(QuantizationArguments(quant_scheme="int8-dynamic"))),
        ):
            model = wrap(bert())
            try:
                callback.on_train_begin(SimpleNamespace(n_gpu=1), TrainerState(max_steps=10), None, model=model)
            except ValueError as error:
                said[f"{wrap.__name__} {option}"] = str(error)
    torch.save(said, folder / f"said-{dist.get_rank()}.pt")


def llama() -> LlamaForSequenceClassification:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=33,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config)


# Sharded checkpoints: accelerate cannot write whole ones on CPUs, where gathered tensors have no storage.
WAYS: dict[str, dict[str, Any]] = {
    "transformers": {},
    "accelerate": fsdp(state_dict_type="SHARDED_STATE_DICT"),
    "accelerate, checkpointing": fsdp(state_dict_type="SHARDED_STATE_DICT", activation_checkpointing=True),
}


def with_trainer(way: str, folder: Path, size: int, **settings: Any) -> dict[str, Any]:
    """Return what a run of all methods leaves; with several processes its model is sharded in this `way`."""
    several = dist.is_initialized()
    if way == "transformers":
        if not several or dist.get_rank() == 0:
            llama().double().save_pretrained(folder / "llama")
        if several:
            dist.barrier()
        plan = DistributedConfig(fsdp_size=2, fsdp_plan={"model.layers.*": "free_full_weight"}) if several else None
        model = LlamaForSequenceClassification.from_pretrained(
            folder / "llama", distributed_config=plan, dtype=torch.float64
        )
        teacher = llama().double()
    else:
        model, teacher = bert(**NO_DROPOUT).double(), bert(seed=1, **NO_DROPOUT).double()
    run = make(
        folder / "run",
        METHODS,
        model=model,
        teacher=teacher,
        data=rows(52),
        per_device_train_batch_size=size,
        learning_rate=1e-3,
        max_steps=8,
        **(WAYS[way] if several else {}) | settings,
    )
    run.train()
    compressed = save_compressed(run.model, folder / f"{way}, compressed", recipe(METHODS))
    return {
        "sharded": isinstance(run.model, FSDPModule),
        "processes": run.accelerator.num_processes,
        "masks": {target.name: gathered(target.weight) != 0 for target in prunable(run.model)},
        "ranges": {name: layer.input_range for name, layer in compressed_layers(run.model).items() if layer.has_range},
        "losses": logged(run, "loss", "grad_norm", "distill_loss", "sparsity"),
        "folder": str(compressed),
    }


def resume(folder: Path) -> dict[str, bool]:
    """Return whether a resumed run of sharded weights ends like an uninterrupted one."""
    given = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6} | WAYS["accelerate"]
    runs = []
    for checkpoint in (None, str(folder / "resumed" / "checkpoint-3")):
        run = make(folder / "resumed", METHODS[1:], model=bert(**NO_DROPOUT), **given)
        run.train(resume_from_checkpoint=checkpoint)
        runs.append({name: gathered(value) for name, value in run.model.state_dict().items()})
    return {"same": same(*runs)}


def work(folder: Path) -> None:
    """Run everything that takes two processes."""
    dist.init_process_group("gloo")
    choose(folder)
    train_all(folder)
    refuse(folder)
    AcceleratorState.__init__ = persuade(AcceleratorState.__init__)
    for way in WAYS:
        torch.save(with_trainer(way, folder, 8), folder / f"{way}-{dist.get_rank()}.pt")
        AcceleratorState._reset_state()
    torch.save(resume(folder), folder / f"resumed-{dist.get_rank()}.pt")
    said = "nothing"
    try:
        make(folder / "run", METHODS, **fsdp(cpu_ram_efficient_loading=True))
    except ValueError as error:
        said = str(error)
    (folder / f"ram-{dist.get_rank()}").write_text(said)
    dist.destroy_process_group()


def loaded(folder: Path, name: str) -> list[Any]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("draw", [*DRAWS, "misled to -1.0", "misled to 5.0", "misled to 0.0", "hybrid"])
def test_shards_have_the_masks_of_whole_weights_and_these_nest(draw: str, two: Path) -> None:
    whole = Held(draw if draw in DRAWS else "tied")
    expected, shards = masks_of(whole), [found[draw] for found in loaded(two, "masks")]
    assert [len(mask) for mask in shards[1]["layer 0.3"]] == (
        [len(mask) for mask in expected["layer 0.3"]] if draw == "hybrid" else [24, 3, 0, 1, 0]
    )
    together = (
        shards[0]
        if draw == "hybrid"
        else {
            case: [torch.cat(parts) for parts in zip(*(shard[case] for shard in shards), strict=True)]
            for case in expected
        }
    )
    assert same(together, expected)
    for scope in SCOPES:
        for less, more in itertools.pairwise(SHARES):
            for dense, sparse in zip(together[f"{scope} {less}"], together[f"{scope} {more}"], strict=True):
                assert (sparse <= dense).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_shards_count_the_zeros_of_whole_weights(draw: str, two: Path) -> None:
    expected = [int((weight == 0).sum()) for weight in Held(draw).weights]
    assert [found[f"{draw}, zeros"] for found in loaded(two, "masks")] == [expected, expected]


def test_all_processes_say_it_when_a_shard_holds_nan(two: Path) -> None:
    for found in loaded(two, "masks"):
        assert "Weight 2 of 5, of shape (7, 129), holds NaN" in found["said"]


def test_replicas_of_a_shard_must_have_the_same_masks(two: Path) -> None:
    assert [found["disagreements"] for found in loaded(two, "masks")] == [([], [3])] * 2


@pytest.mark.parametrize("name", [name for name in PLANS if name != "bf16"])
def test_sharded_training_has_the_bits_of_one_process(name: str, two: Path, tmp_path: Path) -> None:
    one = train(odd_bert(), PLANS[name][2], lambda model: None, tmp_path / "one")
    for found in loaded(two, name):
        assert same(found, one)
    assert (PLANS[name][2].pruning.enabled) == (sum(one["zeros"][-1]) > 0)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {path.name for path in (two / name).iterdir()} and "model.safetensors" in files
    for file in files:
        assert (two / name / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file
    assert not list(two.glob(".*.partial"))


def test_fsdp_in_bf16_stores_the_model_as_it_computed(two: Path) -> None:
    reloaded = BertForSequenceClassification.from_pretrained(two / "bf16", dtype=torch.bfloat16)
    batch = {name: torch.stack([row[name] for row in rows(16)]) for name in rows(1)[0] if name != "labels"}
    for found in loaded(two, "bf16"):
        assert found["logits"].dtype == torch.bfloat16
        assert torch.equal(found["logits"], reloaded(**batch).logits)


@pytest.mark.parametrize("way", WAYS)
def test_a_trainer_of_a_sharded_model_does_what_one_process_does(way: str, two: Path, tmp_path: Path) -> None:
    one = with_trainer(way, tmp_path, 16)
    for found in loaded(two, way):
        assert (found["sharded"], found["processes"]) == (True, 2)
        assert same(found["masks"], one["masks"])
        assert same(found["ranges"], one["ranges"]) and found["ranges"]
        for ours, theirs in zip(found["losses"], one["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
        stored = type(llama() if way == "transformers" else bert()).from_pretrained(found["folder"])
        masks = {target.name: target.weight != 0 for target in prunable(stored)}
        assert all((masks[name] <= mask).all() for name, mask in found["masks"].items())


def test_a_sharded_run_goes_on_from_its_checkpoint_bit_for_bit(two: Path) -> None:
    assert loaded(two, "resumed") == [{"same": True}] * 2


@pytest.mark.gpu(count=2)
def test_a_sharded_trainer_on_gpus_equals_one_process(tmp_path: Path) -> None:
    """accelerate enters FSDP on accelerators only, unless a test persuades it."""
    assert in_two_processes(on_gpus, tmp_path, 8) == [0, 0]
    (tmp_path / "one").mkdir()
    assert in_a_process(on_gpus, tmp_path / "one", 16) == 0
    one = torch.load(tmp_path / "one" / "gpus-0.pt", map_location="cpu")
    for rank in range(2):
        found = torch.load(tmp_path / f"gpus-{rank}.pt", map_location="cpu")
        assert (found["sharded"], found["processes"]) == (True, 2)
        assert same(found["masks"], one["masks"]) and same(found["ranges"], one["ranges"])


def on_gpus(folder: Path, size: int) -> None:
    """Run in a process with one GPU, where accelerate needs no patch."""
    if "RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # Otherwise Trainer uses all GPUs in one process.
    found = with_trainer("accelerate", folder, size, use_cpu=False)
    torch.save(found, folder / f"gpus-{os.environ.get('RANK', 0)}.pt")


@pytest.mark.parametrize("option", ["--prune_sparsity", "--quant_scheme"])
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("flat", "that FSDP1 flattens"),
        ("flat_and_gone", "that FSDP1 flattens"),
        ("tensor_parallel", "is sharded as (Shard(dim=0),)"),
        ("by_columns", "is sharded as (Shard(dim=1),)"),
        ("in_part", "bert.pooler.dense is of shape (32, 32), unlike others"),
        ("beside_an_adapter", "cannot merge sharded weights with an adapter"),
    ],
)
def test_other_shards_are_refused_before_the_first_step(how: str, what: str, option: str, two: Path) -> None:
    for said in loaded(two, "said"):
        message = said[f"{how} {option}"]
        assert message.startswith(f"`{option}`") and what in message and "Use " in message


def test_ranges_that_accelerate_cannot_load_are_refused_at_once(two: Path) -> None:
    for rank in range(2):
        assert "`--quant_scheme int8` keeps ranges in buffers" in (two / f"ram-{rank}").read_text()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_of_deepspeed_the_stages_that_leave_weights_whole_pass(stage: int) -> None:
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": stage}})
    set_hf_deepspeed_config(config)  # As Trainer does; Transformers keeps a weak reference only.
    model = bert()
    weights = {target.name: target.weight for target in prunable(model)}
    if stage == 3:
        with pytest.raises(
            ValueError, match="`--prune_sparsity` cannot reach weights that DeepSpeed ZeRO-3 partitions"
        ):
            refuse_shards(model, weights, "--prune_sparsity")
    else:
        refuse_shards(model, weights, "--prune_sparsity")
