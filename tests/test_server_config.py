"""The server's files, read by its own protocol buffers."""

import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,  # noqa: F401  (known by its name)
)
from tensorflow_serving.config import model_server_config_pb2

from dd_keras.serving import (
    server_config,
    validate_name,
    write_server_config,
)


def make_models(directory, **models):
    """Directories as exports leave them: name to versions."""
    for name, versions in models.items():
        for version in versions:
            (directory / name / str(version)).mkdir(parents=True)


def models_of(directory):
    """Name to path of the models in models.config."""
    text = (directory / "models.config").read_text()
    config = text_format.Parse(
        text, model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    assert all(model.model_platform == "tensorflow" for model in config)
    return {model.name: model.base_path for model in config}


def batching_parameters():
    """TensorFlow Serving's `BatchingParameters`, as documented there.

    tensorflow-serving-api has no such message.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    message = file.message_type.add(name="BatchingParameters")
    for number, name in enumerate(
        (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        ),
        start=1,
    ):
        message.field.add(
            name=name,
            number=number,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
            type_name=".google.protobuf.Int64Value",
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("BatchingParameters")
    )()


def test_all_models_and_nothing_else(tmp_path):
    make_models(tmp_path, lenet=[1, 2], mlp=[7], examples=["a"], notes=[])
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").write_text("")
    assert write_server_config(tmp_path) == ["lenet", "mlp"]
    assert models_of(tmp_path) == {
        "lenet": "/models/lenet",
        "mlp": "/models/mlp",
    }


def test_models_are_listed_anew_and_batching_is_kept(tmp_path):
    make_models(tmp_path, lenet=[1])
    write_server_config(tmp_path, base_path="/srv/robust models/")
    assert models_of(tmp_path) == {"lenet": "/srv/robust models/lenet"}
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 3 }\n")
    make_models(tmp_path, mlp=[1])
    write_server_config(tmp_path)
    assert sorted(models_of(tmp_path)) == ["lenet", "mlp"]
    assert batching.read_text() == "max_batch_size { value: 3 }\n"


@pytest.mark.parametrize("name", ['a "quoted" name', "été 7", "7", "a.b-c_d"])
def test_names_are_quoted(tmp_path, name):
    assert validate_name(name) == name
    make_models(tmp_path, **{name: [1]})
    write_server_config(tmp_path, base_path="/a \\ b")
    assert models_of(tmp_path) == {name: f"/a \\ b/{name}"}


BAD_NAMES = [
    *("a\nb", "a\x1b[31m", "a:b", "a\\b", ".hidden", " a", "a\u2028b"),
    *("examples", "models.config", "batching.config"),
]


@pytest.mark.parametrize(
    "name", [*BAD_NAMES, "", ".", "..", "a/b", "\ud800", 7]
)
def test_names_that_are_none(name):
    message = "^name: expected the name of a folder, of printable characters, "
    with pytest.raises(ValueError, match=message) as caught:
        validate_name(name)
    assert f"received {name!r}." in str(caught.value)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_folder_of_a_bad_name_that_holds_versions_is_named(tmp_path, name):
    make_models(tmp_path, lenet=[1], **{name: [1]})
    with pytest.raises(ValueError, match=r"^name: ") as caught:
        write_server_config(tmp_path)
    assert repr(name) in str(caught.value)
    assert not (tmp_path / "models.config").is_file()


def test_batching_config_is_what_the_server_reads(tmp_path):
    make_models(tmp_path, lenet=[1])
    write_server_config(tmp_path)
    text = (tmp_path / "batching.config").read_text()
    parameters = text_format.Parse(text, batching_parameters())
    assert parameters.max_batch_size.value == server_config.LARGEST_BATCH == 64
    assert 0 < parameters.batch_timeout_micros.value <= 10_000
    assert parameters.max_enqueued_batches.value > 0
    assert parameters.num_batch_threads.value > 0


def test_bad_arguments(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="directory: expected one that"):
            write_server_config(directory)
    make_models(tmp_path, lenet=[1])
    for base_path in ("models", "/mod\nels"):
        with pytest.raises(ValueError, match="base_path: expected an absolute"):
            write_server_config(tmp_path, base_path=base_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lenet"]


def test_versions(tmp_path):
    assert server_config.versions(tmp_path / "missing") == []
    make_models(tmp_path, m=[10, 9, "v3", "1.5", "-4", ".part-1"])
    assert server_config.versions(tmp_path / "m") == [9, 10]
