"""Data sets by name: digits as shipped, others from files that the tests write."""

import gzip
import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mest_fed.data import find_source, load_dataset
from mest_fed.errors import InputError


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def random_pixels(count, side=32):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


PNG = png(random_pixels(1)[0])


def write(folder, images, labels, *, column="img", label="label", splits=("train", "test")):
    rows = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(rows, kind), label: labels})
    for split in splits:
        pq.write_table(table, folder / f"{split}.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEST_FED_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def test_digits():
    data = load_dataset("digits")
    assert len(data.train) + len(data.test) == 1797
    assert data.train.input_shape == (1, 8, 8)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.targets.dtype == torch.int64
    assert data.train.inputs.max() == 255
    shares = (
        data.test.targets.bincount() / torch.cat([data.train.targets, data.test.targets]).bincount()
    )
    assert ((shares > 0.19) & (shares < 0.21)).all()
    pixels = data.train.inputs.double() / 255
    assert data.train.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-6)
    assert data.train.std[0] == pytest.approx(pixels.std().item(), rel=1e-3)
    assert data.test.mean == data.train.mean


@pytest.mark.soak
def test_digits_read_from_the_file_are_those_of_scikit_learn(monkeypatch):
    from_file = load_dataset("digits")
    monkeypatch.setattr("mest_fed.data.digits.find_spec", lambda name: None)
    from_library = load_dataset("digits")
    assert torch.equal(from_file.train.inputs, from_library.train.inputs)
    assert torch.equal(from_file.test.targets, from_library.test.targets)


def test_digits_have_no_files():
    with pytest.raises(InputError, match=r"data\.path = 'here' is not allowed; allowed: nothing"):
        load_dataset("digits", path="here")


def test_digits_are_always_split_the_same_way():
    first, second = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert torch.equal(first.train.targets, second.train.targets)


@pytest.mark.parametrize(
    ("name", "side", "label"),
    [("cifar10", 32, "label"), ("cifar100", 32, "fine_label"), ("mnist", 28, "label")],
)
def test_shapes_are_known_without_the_data(folder, name, side, label):
    example = find_source(name).example
    write(folder, [png(random_pixels(1, side)[0])], [0], label=label)
    assert load_dataset(name, str(folder)).train.example == example
    assert load_dataset("digits").train.example == find_source("digits").example


def test_unknown_name():
    with pytest.raises(InputError, match=r"data\.name = 'mnisd' is not allowed; allowed: digits"):
        load_dataset("mnisd")


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr("mest_fed.data.digits.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"sklearn.* pip install 'mest-fed\[data\]'"):
        load_dataset("digits")


@pytest.mark.parametrize("column", ["img", "image"])
def test_cifar10_from_parquet(folder, column):
    pixels = random_pixels(5)
    write(folder, [png(image) for image in pixels], [0, 9, 3, 3, 1], column=column)
    data = load_dataset("cifar10", str(folder))
    assert data.train.inputs.dtype == torch.uint8
    assert np.array_equal(data.train.inputs.numpy(), pixels.transpose(0, 3, 1, 2))
    assert data.test.targets.tolist() == [0, 9, 3, 3, 1]
    assert data.train.targets.dtype == torch.int64
    assert (data.train.num_classes, data.train.input_shape) == (10, (3, 32, 32))


@pytest.mark.parametrize("wide", [False, True], ids=["binary", "large_binary"])
@pytest.mark.parametrize("where", ["", "data", "plain_text"])
def test_shards_as_a_hub_writes_them(folder, wide, where):
    pixels, labels = random_pixels(5), [0, 9, 3, 3, 1]
    (folder / where).mkdir(exist_ok=True)
    for split in ("train", "test"):
        for number, part in enumerate((slice(0, 3), slice(3, 5))):
            images = [{"bytes": png(image), "path": None} for image in pixels[part]]
            kind = pa.large_binary() if wide else pa.binary()
            column = pa.array(images, pa.struct([("bytes", kind), ("path", pa.string())]))
            table = pa.table({"img": column, "label": labels[part]})
            pq.write_table(table, folder / where / f"{split}-0000{number}-of-00002.parquet")
    data = load_dataset("cifar10", str(folder))
    assert np.array_equal(data.train.inputs.numpy(), pixels.transpose(0, 3, 1, 2))
    assert data.test.targets.tolist() == labels


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet"],
        ["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"],
        ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"],
        ["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"],
    ],
)
def test_shards_of_which_some_are_missing_or_too_many(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    message = load_error(folder)
    assert "allowed: all shards of one download" in message
    assert names[0].rpartition("/")[2] in message


def test_second_load_does_not_decode(folder, monkeypatch):
    write(folder, [png(image) for image in random_pixels(3)], [0, 1, 2])
    first = load_dataset("cifar10", str(folder))

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("mest_fed.data.images.decode_images", fail)
    second = load_dataset("cifar10", str(folder))
    assert torch.equal(first.train.inputs, second.train.inputs)


def test_another_content_is_decoded_anew(folder):
    pixels = random_pixels(2)
    write(folder, [png(pixels[0])], [0])
    load_dataset("cifar10", str(folder))
    write(folder, [png(pixels[1])], [1])
    data = load_dataset("cifar10", str(folder))
    assert np.array_equal(data.train.inputs[0].numpy(), pixels[1].transpose(2, 0, 1))


def test_writing_to_the_images_does_not_change_the_cache(folder):
    write(folder, [png(image) for image in random_pixels(2)], [0, 1])
    before = load_dataset("cifar10", str(folder)).train.inputs
    copy = before.clone()
    before.zero_()
    assert torch.equal(load_dataset("cifar10", str(folder)).train.inputs, copy)


def test_grey_images_become_rgb(folder):
    grey = random_pixels(1)[0, :, :, 0]
    write(folder, [png(grey)], [0])
    data = load_dataset("cifar10", str(folder))
    assert np.array_equal(data.train.inputs[0].numpy(), np.stack([grey] * 3))


def load_error(folder):
    with pytest.raises(InputError) as error:
        load_dataset("cifar10", str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert "data.path" in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no image", "image 1 of"),
        (b"", "is no image"),
        (png(random_pixels(1)[0])[:200], "image 1 of"),
        (png(random_pixels(1, side=28)[0]), "(28, 28) pixels, not (32, 32)"),
    ],
)
def test_wrong_image(folder, cache, content, words):
    write(folder, [png(random_pixels(1)[0]), content], [0, 1])
    message = load_error(folder)
    assert words in message
    assert "train.parquet" in message
    # Nothing half-built stays, so the next run tries again.
    assert [entry for entry in cache.iterdir() if entry.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"pixels": [b"x"], "label": [1]}, "no column 'img'; allowed: pixels, label"),
        ({"img": [{"bytes": b"x"}]}, "no column 'label'; allowed: img"),
        ({"img": [b"x"], "label": [1]}, "column img is binary; allowed: numbers, strings"),
        ({"img": [{"path": "x"}], "label": [1]}, "column img is struct<path: string>"),
        ({"img": [{"bytes": "text"}], "label": [1]}, "img.bytes is string; allowed: binary"),
        ({"img": [{"bytes": b"x"}, {"bytes": None}], "label": [1, 1]}, "row 2: img.bytes has no"),
        ({"img": [{"bytes": b"x"}, None], "label": [1, 1]}, "row 2: column img has no value"),
        ({"img": [{"bytes": PNG}], "label": ["cat"]}, "label is not a column of whole numbers"),
        ({"img": [{"bytes": b"x"}] * 2, "label": [1, None]}, "row 2: column label has no"),
        ({"img": [{"bytes": PNG}], "label": [10]}, "is out of range; allowed: 0 to 9"),
        ({"img": [{"bytes": PNG}], "label": [-1]}, "is out of range; allowed: 0 to 9"),
    ],
)
def test_wrong_table(folder, table, words):
    for split in ("train", "test"):
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    assert words in load_error(folder)


def test_empty_table(folder):
    write(folder, [], pa.array([], pa.int64()))
    assert "it has no rows" in load_error(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet at all PAR1", b"x" * 100])
def test_no_parquet(folder, content):
    for split in ("train", "test"):
        (folder / f"{split}.parquet").write_bytes(content)
    assert "is no parquet file" in load_error(folder)


def test_missing_files(folder):
    assert "a folder with train.parquet and test.parquet" in load_error(folder)
    assert "a folder with train.parquet and test.parquet" in load_error(folder / "none")
    write(folder, [png(random_pixels(1)[0])], [0], splits=["train"])
    assert "a folder with train.parquet and test.parquet" in load_error(folder)


@pytest.mark.parametrize("module", ["pyarrow", "PIL.Image"])
def test_missing_library_names_the_extra(folder, monkeypatch, module):
    write(folder, [png(random_pixels(1)[0])], [0])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'mest-fed\[data\]'"):
        load_dataset("cifar10", str(folder))


def test_damaged_cache_says_what_to_delete(folder, cache):
    write(folder, [png(random_pixels(1)[0])], [0])
    load_dataset("cifar10", str(folder))
    (entry,) = [entry for entry in cache.iterdir() if entry.is_dir()]
    stored = entry / "images.npy"
    stored.write_bytes(stored.read_bytes()[:500])
    with pytest.raises(InputError, match="is damaged; delete it"):
        load_dataset("cifar10", str(folder))


def test_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    write(folder, [png(random_pixels(1)[0])], [0])
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"MEST_FED_CACHE = .*file': cannot write to it"):
        load_dataset("cifar10", str(folder))


def test_mnist_from_its_original_files(folder):
    pixels = random_pixels(3, 28)[..., 0]
    for name, part, wrap in (("train", pixels, gzip.compress), ("t10k", pixels[:2], bytes)):
        suffix = ".gz" if wrap is gzip.compress else ""
        images = b"\0\0\x08\x03" + struct.pack(">3I", *part.shape) + part.tobytes()
        labels = b"\0\0\x08\x01" + struct.pack(">I", len(part)) + bytes(range(len(part)))
        (folder / f"{name}-images-idx3-ubyte{suffix}").write_bytes(wrap(images))
        (folder / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(wrap(labels))
    data = load_dataset("mnist", str(folder))
    assert np.array_equal(data.train.inputs[:, 0].numpy(), pixels)
    assert data.test.targets.tolist() == [0, 1]
    (folder / "t10k-images-idx3-ubyte").write_bytes(images[:100])
    with pytest.raises(InputError, match=r"data\.path: .*t10k-images-idx3-ubyte cannot be read"):
        load_dataset("mnist", str(folder))


def test_femnist_has_writers_and_no_test_part(folder):
    rows = [{"bytes": png(image), "path": None} for image in random_pixels(20, 28)]
    table = {"image": rows, "writer_id": ["f1", "f0"] * 10, "character": [3, 61] * 10}
    pq.write_table(pa.table(table), folder / "train-00000-of-00001.parquet")
    data = load_dataset("femnist", str(folder), columns={"groups": "writer_id"})
    assert (len(data.train), len(data.test)) == (16, 4)
    assert data.train.example.input_shape == (1, 28, 28)
    assert data.train.num_classes == 62
    # f1 wrote every 3, f0 every 61.
    assert torch.equal(data.train.groups == 1, data.train.targets == 3)


class _NoHub:
    def __init__(self, **_):
        raise ConnectionError("no network\nand more")


def test_no_network_says_to_set_the_path(monkeypatch):
    hub = pytest.importorskip("flwr_datasets")
    monkeypatch.setattr(hub, "FederatedDataset", _NoHub)
    with pytest.raises(InputError, match=r"cannot be downloaded \(ConnectionError\)") as error:
        load_dataset("cifar10")
    assert "set data.path" in str(error.value)
    assert "\n" not in str(error.value)


def test_download_is_decoded_once(monkeypatch):
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("flwr_datasets")
    pixels = random_pixels(2)
    rows = {"img": [{"bytes": png(image), "path": None} for image in pixels], "label": [4, 2]}
    asked = []

    class Hub:
        def __init__(self, dataset, **_):
            asked.append(dataset)

        def load_split(self, _split):
            features = datasets.Features(
                {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
            )
            return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(hub, "FederatedDataset", Hub)
    for _ in range(2):
        data = load_dataset("cifar10")
        assert np.array_equal(data.train.inputs.numpy(), pixels.transpose(0, 3, 1, 2))
        assert data.test.targets.tolist() == [4, 2]
    assert asked == ["uoft-cs/cifar10"] * 2  # once for each split


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("MEST_FED_TEST_CIFAR10"),
    reason="MEST_FED_TEST_CIFAR10 does not name a folder with train.parquet and test.parquet",
)
def test_real_cifar10():
    data = load_dataset("cifar10", str(Path(os.environ["MEST_FED_TEST_CIFAR10"])))
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert data.train.targets.bincount().tolist() == [5000] * 10
    sample = data.train.inputs[::10].float() / 255
    assert torch.allclose(sample.mean((0, 2, 3)), torch.tensor(data.train.mean), atol=0.01)
    assert torch.allclose(sample.std((0, 2, 3)), torch.tensor(data.train.std), atol=0.01)
