"""The whole story over real sockets: model and data by id, trained, compressed, published, and used by strangers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_compress.report.report import Report
from tests.hub import accounts, seeds
from tests.hub.local import LocalHub

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "launched" / "train_by_id.py"
METHODS = ["--distill_teacher", "self", "--prune_sparsity", "0.5", "--prune_every", "1", "--quant_scheme", "int8"]
METHODS += ["--distill_extra", f"{seeds.DATA}:validation"]  # Unlabelled texts by id, too.
SMALL = "--max_steps 40 --per_device_train_batch_size 8 --learning_rate 5e-3 --use_cpu --save_strategy no"
SMALL += " --disable_tqdm true --report_to none"
# In such a process nothing of ours can be imported, whatever is installed.
WITHOUT_US = "import sys; sys.modules['hf_compress'] = None\n"
SENTENCES = ["the film was very bright", "the song is dreary today", "the story was honest"]


@dataclass(frozen=True)
class Published:
    """A Hub with the model of a finished run in `me/small`, the folder of the run, and what the run printed."""

    hub: LocalHub
    folder: Path
    said: str

    @property
    def files(self) -> dict[str, bytes]:
        return self.hub.repository("me/small").files()


def program(hub: LocalHub, *words: object, token: str | None = accounts.GOOD_TOKEN, both: bool = False) -> str:
    """What a command prints that ends well (with `both`, also what it logs), run with an empty cache against `hub`."""
    environment = hub.environment(token) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(word) for word in words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=elsewhere(hub),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr if both else done.stdout


def elsewhere(hub: LocalHub) -> Path:
    """An empty working directory, so that no id is the name of a folder."""
    folder = Path(hub.environment()["HF_HOME"]) / "work"
    folder.mkdir(parents=True)
    return folder


def ours() -> str:
    return str(Path(sys.executable).with_name("hf-compress"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """A script that knows nothing of compression, run by the launcher with ids of the Hub, pushes at its end."""
    with LocalHub() as hub:
        seeds.add_model(hub)
        seeds.add_data(hub)
        output = tmp_path_factory.mktemp("story") / "run"
        words = [ours(), "run", SCRIPT, "--model", seeds.MODEL, "--dataset", seeds.DATA, "--output_dir", output]
        words += [*SMALL.split(), *METHODS, "--compress_formats", "packed", "onnx"]
        said = program(hub, *words, "--push_to_hub", "--hub_model_id", "me/small", both=True)
        yield Published(hub, output / "compressed", said)


def test_the_finished_folder_is_published_in_one_commit(published: Published) -> None:
    repository = published.hub.repository("me/small")
    assert len(repository.history()) == 1
    files = {path.relative_to(published.folder).as_posix() for path in published.folder.rglob("*") if path.is_file()}
    assert published.files.keys() == files
    assert all(content == (published.folder / name).read_bytes() for name, content in published.files.items())
    report = Report.load(published.folder)
    assert report.base_model == seeds.MODEL
    assert report.recipe.distillation.distill_extra == [f"{seeds.DATA}:validation"]
    assert report.dataset.hub_id == seeds.DATA
    assert report.dataset.revision == published.hub.repository(seeds.DATA, "dataset").at().oid
    assert published.hub.url + "/me/small" in published.said


def test_the_card_says_what_it_is_made_from(published: Published) -> None:
    metadata = published.hub.repository("me/small").metadata()
    assert metadata["base_model"] in (seeds.MODEL, [seeds.MODEL])
    assert metadata["datasets"] == [seeds.DATA]
    card = published.files["README.md"].decode()
    assert "me/small" in card, "the code in the card names the repository"


def labels_by(published: Published, code: str) -> list[str]:
    """The labels that a new process prints for SENTENCES, one JSON list."""
    said = program(published.hub, sys.executable, "-c", code, token=None)
    found = json.loads(said.splitlines()[-1])
    assert len(found) == len(SENTENCES)
    return [str(label) for label in found]


PIPELINE = (
    "import json; from transformers import pipeline\n"
    "run = pipeline('text-classification', 'me/small'{more})\n"
    f"print(json.dumps([found['label'] for found in run({SENTENCES!r})]))"
)
ONNX = f"""import json, numpy, onnxruntime
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("me/small")
config = json.load(open(hf_hub_download("me/small", "config.json")))
session = onnxruntime.InferenceSession(hf_hub_download("me/small", "onnx/model_quantized.onnx"))
inputs = dict(tokenizer({SENTENCES!r}, padding=True, return_tensors="np"))
names = [value.name for value in session.get_inputs()]
(logits,) = session.run(None, {{name: inputs[name].astype(numpy.int64) for name in names}})
print(json.dumps([config["id2label"][str(best)] for best in logits.argmax(-1)]))"""


def test_strangers_get_the_same_answers_in_every_way(published: Published) -> None:
    """With the package, with ONNX Runtime alone, and with stock Transformers where the package cannot be imported."""
    with_us = labels_by(published, "import hf_compress\n" + PIPELINE.format(more=""))
    assert with_us == ["positive", "negative", "positive"], "these words are easy"
    assert labels_by(published, WITHOUT_US + ONNX) == with_us
    assert labels_by(published, WITHOUT_US + PIPELINE.format(more=", trust_remote_code=True")) == with_us


def test_stock_transformers_says_what_to_install(published: Published) -> None:
    """Without the package and without leave to run the file in the repository; never a random model."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US + PIPELINE.format(more="")],
        env=published.hub.environment(None),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert not done.stdout.strip().startswith("["), "no answers of a model that was not loaded"
    assert "trust_remote_code=True" in done.stderr
    assert "pip install" in done.stderr


def test_verify_says_true(published: Published) -> None:
    found = json.loads(program(published.hub, ours(), "verify", "me/small", "--json", token=None))
    assert found["verdict"] == "true", found
    said = program(published.hub, ours(), "verify", "me/small", token=None)
    assert "true" in said


def test_the_example_runs_with_ids_of_the_hub(tmp_path: Path) -> None:
    """examples/run_glue.py with its default data set, and a base model by its id."""
    with LocalHub() as hub:
        seeds.add_model(hub, "google-bert/bert-base-uncased")
        seeds.add_glue(hub)
        seeds.add_data(hub)
        words = [sys.executable, ROOT / "examples" / "run_glue.py"]
        words += ["--model_name_or_path", "google-bert/bert-base-uncased", "--task_name", "sst2"]
        words += ["--output_dir", tmp_path / "sst2", "--do_train", "--do_eval", "--dense_baseline", "train"]
        words += [*SMALL.split(), *METHODS, "--compress_hub_id", "me/sst2-small"]
        program(hub, *words)
        report = Report.load(tmp_path / "sst2" / "compressed")
        assert report.dataset.hub_id == "nyu-mll/glue"
        assert report.base_model == "google-bert/bert-base-uncased"
        assert report.compressed["accuracy"] > 0.8
        assert len(hub.repository("me/sst2-small").history()) == 1
        found = json.loads(program(hub, ours(), "verify", "me/sst2-small", "--json", token=None))
        assert found["verdict"] == "true", found
