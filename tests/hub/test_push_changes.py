"""What a push changes, decided from names and hashes alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_compress.hub.changes import changes, decides
from hf_compress.hub.repository import written_by_us

NAMES = [
    "README.md",
    "config.json",
    "model.safetensors",
    "onnx/model.onnx",
    "LICENSE",
    "notes.txt",
    "pytorch_model.bin",
]
FILES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123"))


@given(folder=FILES, repository=FILES, ours=st.sets(st.sampled_from(NAMES)), replace=st.booleans())
def test_the_repository_comes_to_hold_the_folder(
    folder: dict[str, str], repository: dict[str, str], ours: set[str], replace: bool
) -> None:
    found = changes({name: [one] for name, one in folder.items()}, repository, ours, replace=replace)
    after = {name: one for name, one in repository.items() if name not in found.removed}
    after |= {name: folder[name] for name in (*found.added, *found.changed)}
    assert {name: after[name] for name in folder} == folder, "all of the folder is there"
    assert set(after) - set(folder) == set(found.kept) | (set(found.clashing) - set(folder)) | (
        {"README.md"} & ours & set(repository) - set(folder)
    )
    again = changes({name: [one] for name, one in folder.items()}, after, set(folder) | ours, replace=replace)
    assert again.nothing, "a second push has nothing to do"
    assert not (replace and found.clashing)


@given(folder=FILES, repository=FILES, ours=st.sets(st.sampled_from(NAMES)))
def test_a_foreign_file_is_never_lost_unless_asked(
    folder: dict[str, str], repository: dict[str, str], ours: set[str]
) -> None:
    found = changes({name: [one] for name, one in folder.items()}, repository, ours)
    lost = set(found.removed) | set(found.changed)
    assert lost - ours - {"README.md"} <= set(found.clashing)


def test_weights_of_one_run_go_when_another_comes() -> None:
    there = {"model.safetensors": "1", "onnx/model.onnx": "2", "LICENSE": "3", "report.json": "4"}
    found = changes({"model.safetensors": ["5"], "report.json": ["6"]}, there, {*there} - {"LICENSE"})
    assert found.changed == ["model.safetensors", "report.json"]
    assert found.removed == ["onnx/model.onnx"]
    assert (found.kept, found.clashing) == (["LICENSE"], [])


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "adapter_config.json", "adapter_model.safetensors", "onnx/model_quantized.onnx", "onnx/model.onnx_data",
        "openvino/openvino_model.bin", "openvino/openvino_model.xml", "tf_model.h5", "flax_model.msgpack",
        "model-q4.gguf", "MODEL.SAFETENSORS", "tokenizer.json", "vocab.txt", "generation_config.json", "modules.json",
    ],
)  # fmt: skip
def test_a_foreign_file_that_decides_what_loads_clashes(name: str) -> None:
    folder = {"model.safetensors": ["1"], "config.json": ["2"]}
    assert changes(folder, {name: "9"}, ()).clashing == [name]
    assert changes(folder, {name: "9"}, (), replace=True).removed == [name]
    assert changes(folder, {name: "9"}, {name}).removed == [name]


@pytest.mark.parametrize("name", ["LICENSE", "training_args.bin", "rng_state_0.pth", "runs/events", ".gitattributes"])
def test_any_other_foreign_file_stays(name: str) -> None:
    found = changes({"model.safetensors": ["1"]}, {name: "9"}, (), replace=True)
    assert not decides(name)
    assert (found.kept, found.removed) == ([name], [])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": {"a": {}}}', '{"schema": 1, "files": {"a": {}}}'])
def test_a_report_of_somebody_else_makes_nothing_ours(text: str) -> None:
    assert written_by_us(text) == frozenset()


@pytest.mark.parametrize("files", ["null", "[]", '"a"', "{}"])
def test_a_report_without_files_makes_itself_ours(files: str) -> None:
    assert written_by_us(f'{{"schema": "hf_compress.report/9", "files": {files}}}') == {
        "report.json",
        ".eval_results/hf_compress.yaml",
    }
