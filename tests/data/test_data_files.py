"""Data in files without a loader: shapes, classes and statistics are found in them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mest_fed.data import Batches, load_dataset
from mest_fed.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "cache"))


def save_images(folder, classes, *, count=5, mode="RGB", seed=0):
    generator = np.random.default_rng(seed)
    shape = (6, 8) if mode == "L" else (6, 8, 3)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def write_csv(file, header, rows):
    text = "\n".join([header, *rows]) + "\n"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    return str(file)


def error_of(name, path, **options):
    with pytest.raises(InputError) as error:
        load_dataset(name, str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Images by class.


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_folder_of_images(tmp_path, mode, channels):
    for part, seed in (("train", 0), ("test", 1)):
        save_images(tmp_path / part, ["dog", "cat"], mode=mode, seed=seed)
    data = load_dataset("folder", str(tmp_path))
    assert data.train.input_shape == (channels, 6, 8)
    assert data.train.num_classes == 2
    assert data.train.targets.tolist() == [0] * 5 + [1] * 5
    first = np.asarray(Image.open(tmp_path / "train" / "cat" / "0.png"))
    expected = first[None] if mode == "L" else first.transpose(2, 0, 1)
    assert np.array_equal(data.train.inputs[0].numpy(), expected)
    pixels = data.train.inputs.double() / 255
    assert data.train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert data.test.mean == data.train.mean
    assert load_dataset("files", str(tmp_path)).test.targets.tolist() == [0] * 5 + [1] * 5


def test_a_folder_without_a_test_part_is_split_within_each_class(tmp_path):
    path = tmp_path / "animals"
    save_images(path, ["cat", "dog"], count=10)
    first, second = (load_dataset("folder", str(path)) for _ in range(2))
    assert first.train.targets.bincount().tolist() == [8, 8]
    assert first.test.targets.bincount().tolist() == [2, 2]
    assert torch.equal(first.test.inputs, second.test.inputs)
    half = load_dataset("folder", str(path), options={"test_fraction": 0.5})
    assert len(half.test) == 10


def test_images_of_unlike_sizes(tmp_path):
    save_images(tmp_path / "train", ["cat", "dog"])
    Image.new("RGB", (8, 9)).save(tmp_path / "train" / "dog" / "x.png")
    message = error_of("folder", tmp_path)
    assert "dog/x.png: it has (8, 9) pixels, not (8, 6)" in message
    data = load_dataset("folder", str(tmp_path), options={"size": 4})
    assert data.train.input_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: save_images(f / "test", ["fox"]), "fox/0.png: label 'fox' was never seen in tr"),
        (lambda f: (f / "train" / "empty").mkdir(), "train/empty holds no images"),
        (lambda f: (f / "train" / "cat" / "1.png").write_bytes(b"x"), "cat/1.png is no image"),
    ],
)
def test_a_wrong_folder(tmp_path, spoil, words):
    save_images(tmp_path / "train", ["cat", "dog"])
    spoil(tmp_path)
    assert words in error_of("folder", tmp_path)


# Tables.


def test_a_csv_of_numbers_and_categories(tmp_path):
    rows = [
        f"{n},{'red' if n % 3 else 'blue'},{n / 2},{'yes' if n % 2 else 'no'}" for n in range(40)
    ]
    path = write_csv(tmp_path / "people.csv", "age,color,height,label", rows)
    data = load_dataset("csv", path)
    assert data.train.example.input_shape == (4,)  # age, blue, red, height
    assert (len(data.train), len(data.test), data.train.num_classes) == (32, 8, 2)
    ages = data.train.inputs[:, 0]
    assert data.train.mean[0] == pytest.approx(ages.mean().item())
    assert data.train.mean[1:3] == (0, 0)
    (batch,) = Batches(data.train, np.arange(32), 32)
    assert batch.inputs[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert batch.inputs[:, 0].std(correction=0).item() == pytest.approx(1)
    assert set(batch.inputs[:, 2].tolist()) == {0.0, 1.0}
    plain = load_dataset("csv", path, normalise=False)
    assert plain.train.mean == ()


def test_all_columns_but_the_target_are_inputs(tmp_path):
    path = write_csv(tmp_path / "a.csv", "x,y,z,label", [f"{n},{n},1,{n % 2}" for n in range(10)])
    data = load_dataset("csv", path).train
    assert data.input_shape == (3,)
    assert data.std[2] == 1  # a constant has no deviation
    write_csv(tmp_path / "b.csv", "x,x,label", ["1,2,a"] * 5)
    assert "b.csv has two columns of one name" in error_of("csv", tmp_path / "b.csv")


def test_targets_of_a_table_may_be_numbers(tmp_path):
    path = write_csv(tmp_path / "a.csv", "x,y,z", [f"{n},{n / 2},{n % 2}" for n in range(10)])
    one = load_dataset("csv", path, columns={"inputs": "x", "targets": "y"}).train
    assert (one.num_classes, one.example.num_outputs, one.targets.dtype) == (None, 1, torch.float32)
    two = load_dataset("csv", path, columns={"inputs": ["x"], "targets": ["z", "y"]}).train
    assert two.targets.shape == (8, 2)
    whole = load_dataset("csv", path, columns={"inputs": "x", "targets": "z"}, numbers=True).train
    assert whole.targets.dtype == torch.float32


def test_categories_of_numbers_and_values_that_look_like_numbers(tmp_path):
    (tmp_path / "d").mkdir()
    write_csv(tmp_path / "d" / "train.csv", "zip,kind,label", ["02139,3,a", "A1,5,b"] * 3)
    write_csv(tmp_path / "d" / "test.csv", "zip,kind,label", ["02139,5,b"])
    data = load_dataset("csv", str(tmp_path / "d"), columns={"categories": "kind"})
    assert data.test.inputs.tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (["1,a", ",b"], ["1,a"], "train.csv, row 2: column x has no value"),
        (["1,a", "nan,b"], ["1,a"], "train.csv, row 2: column x has no value"),
        (["1,a", "inf,b"], ["1,a"], "train.csv, row 2: x has inf; allowed: finite numbers"),
        (["1,a", "2"], ["1,a"], "train.csv is no CSV table (CSV parse error: Row #3"),
        (["1,caf\udce9"], ["1,a"], "train.csv: column label is no UTF-8 text"),
        ([], ["1,a"], "train.csv: it has no rows"),
        (["1,a", "2,b"], ["1,c"], "test.csv, row 1: label 'c' was never seen in train; allowed: a"),
        (["1,a", "2,b"], ["one,b"], "test.csv: column x holds 'one'; allowed: numbers"),
        (["1,0", "2,1"], ["1,1", "1,2"], "test.csv, row 2: label 2 is out of range; allowed: 0 to"),
        (["1,0", "2,-1"], ["1,1"], "train.csv, row 2: label -1 is out of range"),
        (["1,0", "2,70000"], ["1,1"], "row 2: label 70000 is out of range for 2 examples"),
    ],
)
def test_a_wrong_csv(tmp_path, train, test, words):
    write_csv(tmp_path / "train.csv", "x,label", train)
    write_csv(tmp_path / "test.csv", "x,label", test)
    assert words in error_of("csv", tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"inputs": "x", "targets": "w"}}, "a.csv: no column 'w'; allowed: x, v"),
        ({"columns": {"input": "w"}}, "a.csv: no column 'w'; allowed: x, v"),
        ({"columns": {"features": "x"}}, "data.columns = 'features' is not allowed; allowed: inp"),
        ({"columns": {"inputs": 3}}, "data.columns.inputs = 3 is not allowed"),
        ({"columns": {"inputs": ["x", "x"]}}, "data.columns.inputs = ['x', 'x'] is not allowed"),
        ({"options": {"tokens": "bytes"}}, "data.options.tokens = 'bytes' is not allowed"),
        ({"options": {"length": "9"}}, "data.options.length = '9' is not allowed"),
        ({"columns": {"groups": "user"}}, "a.csv: no column 'user'"),
        (
            {"options": {"windows": 3}},
            "data.options.windows = 3 is not allowed; allowed: delimiter",
        ),
        ({}, "a.csv: no column is named label"),
        ({"columns": {"inputs": [], "targets": ["x", "v"]}}, "no column is left for the inputs"),
        ({"columns": {"targets": "v"}, "options": {"shape": "2x2"}}, "data.options.shape = '2x2'"),
        ({"columns": {"targets": "v"}, "options": {"window": 30}}, "no group has the 30 rows"),
        ({"columns": {"targets": "v"}, "options": {"test_fraction": 2}}, "data.options.test_fract"),
    ],
)
def test_columns_and_options_that_do_not_fit(tmp_path, options, words):
    path = write_csv(tmp_path / "a.csv", "x,v", [f"{n},{n % 2}" for n in range(10)])
    assert words in error_of("csv", path, **options)


@pytest.mark.parametrize("written", [";", "\t", "|", ","])
def test_a_table_that_looks_like_one_column_names_the_delimiter(tmp_path, written):
    rows = [written.join([str(n), str(n % 2)]) for n in range(10)]
    path = write_csv(tmp_path / "a.csv", written.join("xv"), rows)
    assumed = {"delimiter": ";"} if written == "," else {}
    hint = f"set data.options.delimiter = {written!r}"
    for columns in ({"inputs": "x", "targets": "v"}, {}):
        assert error_of("csv", path, columns=columns, options=assumed).endswith(hint)
    wide = write_csv(tmp_path / "b.csv", "x;y,v", ["1,2"])
    assert "delimiter" not in error_of("csv", wide, columns={"targets": "w"})


def test_windows_of_a_series_stay_within_a_person(tmp_path):
    rows = [f"u{n // 50},{n},{n % 7},{'walk' if n // 10 % 2 else 'sit'}" for n in range(100)]
    path = write_csv(tmp_path / "walk.csv", "user,x,y,activity", rows)
    columns = {"inputs": ["x", "y"], "targets": "activity", "groups": "user"}
    data = load_dataset("csv", path, columns=columns, options={"window": 10, "stride": 5})
    assert data.train.example.input_shape == (2, 10)
    # 9 windows each: the last 2 are the test; the one before them shares rows with it.
    assert (len(data.train), len(data.test)) == (12, 4)
    x = data.train.inputs[:, 0]
    assert torch.equal(x[1], torch.arange(5.0, 15))
    assert torch.equal(x[:, -1] // 50, data.train.groups.float())
    assert torch.equal(data.train.targets, x[:, -1].long() // 10 % 2)
    assert x[data.train.groups == 0].max() < data.test.inputs[:, 0][data.test.groups == 0].min()


def test_a_forecast(tmp_path):
    path = write_csv(tmp_path / "a.csv", "x", [f"{n / 2}" for n in range(40)])
    columns = {"inputs": "x", "targets": "x"}
    data = load_dataset("csv", path, columns=columns, options={"window": 4, "horizon": 1}).train
    assert torch.equal(data.targets[:, 0], data.inputs[:, 0, -1] + 0.5)


def test_columns_as_one_input_of_a_shape(tmp_path):
    header = ",".join([*(f"t{n}" for n in range(6)), "label"])
    path = write_csv(tmp_path / "a.tsv", header.replace(",", "\t"), ["0\t1\t2\t3\t4\t5\t1"] * 5)
    data = load_dataset("files", path, options={"shape": "2x3"})
    assert data.train.inputs[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def parquet_image(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_parquet_shards_with_columns_of_any_names(tmp_path, binary):
    kind = pa.struct([("bytes", binary), ("path", pa.string())])
    (tmp_path / "data").mkdir()
    for part, number in (("train", 0), ("train", 1), ("test", 0)):
        images = pa.array([parquet_image(10 * number + n) for n in range(4)], kind)
        table = pa.table({"bild": images, "klasse": ["b", "a"] * 2, "user_id": [7, 7, 9, 9]})
        count = {"train": 2, "test": 1}[part]
        pq.write_table(table, tmp_path / "data" / f"{part}-0000{number}-of-0000{count}.parquet")
    columns = {"inputs": "bild", "targets": "klasse", "groups": "user_id"}
    data = load_dataset("parquet", str(tmp_path), columns=columns)
    assert data.train.input_shape == (1, 5, 5)
    assert data.train.targets.tolist() == [1, 0] * 4
    assert data.train.groups.tolist() == [0, 0, 1, 1] * 2
    assert len(data.test) == 4
    assert "no column is named label" in error_of("parquet", tmp_path)
    assert torch.equal(
        load_dataset("files", str(tmp_path), columns={"targets": "klasse"}).train.inputs,
        data.train.inputs,
    )


@pytest.fixture
def lists(tmp_path):
    columns = {
        "f": [[1.0, 2.0], [3.0, 4.0]] * 5,
        "fixed": pa.array([[1.0, 2.0], [3.0, 4.0]] * 5, pa.list_(pa.float64(), 2)),
        "deep": [[[1.0], [2.0]], [[3.0], [4.0]]] * 5,
        "tokens": [[1, 2, 3], [3, 4, 0]] * 5,
        "ragged": [[1], [2, 3]] * 5,
        "holes": [[1, 2], [None, 3]] * 5,
        "several": [[0, 1, 1], [1, 0, 0]] * 5,
        "words": [["a", "b"], ["b", "c"]] * 5,
        "text": ["so it is", "no"] * 5,
        "label": [0, 1] * 5,
    }
    pq.write_table(pa.table(columns), tmp_path / "lists.parquet")
    return tmp_path / "lists.parquet"


@pytest.mark.parametrize(
    ("inputs", "shape", "dtype"),
    [
        ("f", (2,), torch.float32),
        ("fixed", (2,), torch.float32),
        ("deep", (2, 1), torch.float32),
        ("tokens", (3,), torch.int64),
        ("words", (2,), torch.int64),
    ],
)
def test_lists_are_inputs_of_a_shape(lists, inputs, shape, dtype):
    data = load_dataset("parquet", str(lists), columns={"inputs": inputs}).train
    assert (data.input_shape, data.inputs.dtype, len(data)) == (shape, dtype, 8)


def test_lists_as_targets_are_several_labels(lists):
    data = load_dataset("parquet", str(lists), columns={"inputs": "f", "targets": "several"}).train
    assert (data.targets.dtype, data.targets.shape, data.num_classes) == (
        torch.float32,
        (8, 3),
        None,
    )


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("ragged", "row 2: column ragged is ragged: 2 values, 1 in row 1"),
        ("holes", "row 2: column holes has no value in a list"),
    ],
)
def test_wrong_lists(lists, inputs, words):
    assert words in error_of("parquet", lists, columns={"inputs": inputs})


def test_texts_as_tokens_with_a_class(lists):
    options = {"tokens": "words", "length": 2}
    columns = {"inputs": "text", "targets": "label"}
    data = load_dataset("parquet", str(lists), columns=columns, options=options).train
    assert data.example.num_tokens == 4  # "", it, no, so
    assert {tuple(row) for row in data.inputs.tolist()} == {(3, 1), (2, 4)} or data.inputs.max() < 4


# Arrays and text.


def test_arrays_of_an_npz_file(tmp_path):
    generator = np.random.default_rng(0)
    series, classes = generator.normal(size=(20, 3, 7)), np.arange(20) % 4
    np.savez(tmp_path / "a.npz", series=series, kind=classes, who=np.arange(20) // 5)
    columns = {"inputs": "series", "targets": "kind", "groups": "who"}
    data = load_dataset("npz", str(tmp_path / "a.npz"), columns=columns)
    assert data.train.input_shape == (3, 7)
    assert len(data.train.mean) == 3
    assert data.train.groups.unique().tolist() == [0, 1, 2, 3]
    message = error_of("npz", tmp_path / "a.npz")
    assert "has the arrays series, kind, who; allowed: inputs, targets or images, labels" in message
    np.savez(tmp_path / "b.npz", x=series, y=classes[:19])
    assert "19 y and 20 x; allowed: as many" in error_of("npz", tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", inputs=np.ones((20, 0)), targets=classes)
    assert "its inputs are empty" in error_of("npz", tmp_path / "c.npz")


def test_an_npz_file_with_both_parts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    labels = np.arange(6) % 3
    np.savez(
        tmp_path / "m.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3]
    )
    data = load_dataset("files", str(tmp_path / "m.npz"))
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.train.input_shape == (1, 4, 4)


def test_lines_of_text(tmp_path):
    text = "so it is\n" * 20
    (tmp_path / "a.txt").write_text(text)
    data = load_dataset("text", str(tmp_path / "a.txt"), options={"length": 6})
    assert (len(data.train), len(data.test)) == (23, 6)  # 179 // 6 sequences, the last fifth
    vocabulary = sorted(set(text))
    example = data.train.example
    assert (example.num_tokens, example.num_outputs, example.target_shape) == (6, 6, (6,))
    shown = "".join(vocabulary[token] for token in data.train.inputs.flatten())
    assert shown == text[: len(shown)]
    following = "".join(vocabulary[token] for token in data.train.targets.flatten())
    assert following == text[1 : len(shown) + 1]
    words = load_dataset("text", str(tmp_path / "a.txt"), options={"length": 4, "tokens": "words"})
    assert words.train.inputs[0].tolist() == [3, 2, 1, 0]  # so it is newline
    message = error_of("text", tmp_path / "a.txt", options={"length": 500})
    assert "has 180 tokens; allowed: more than data.options.length = 500" in message


def test_texts_of_persons_are_sequences_within_a_person(tmp_path):
    rows = [f"{'ab'[n % 2]},{'xy'[n % 2] * 4}" for n in range(20)]
    path = write_csv(tmp_path / "plays.csv", "who,line", rows)
    columns, options = {"inputs": "line", "groups": "who"}, {"tokens": "characters", "length": 5}
    data = load_dataset("csv", path, columns=columns, options=options).train
    assert torch.equal(data.inputs, data.groups[:, None].expand(-1, 5))
    assert torch.equal(data.targets, data.inputs)


def test_shakespeare_by_role(tmp_path):
    table = {
        "character_id": ["hamlet", "yorick"] * 10,
        "x": ["to be or not to be", "alas"] * 10,
        "y": ["t", "p"] * 10,
    }
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    data = load_dataset("shakespeare", str(tmp_path)).train
    assert (data.example.input_shape, data.num_classes) == ((80,), 2)
    assert torch.equal(data.groups, 1 - data.targets)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "files",
            "data.path = '{}' is not allowed; allowed: a folder of images by class, .parquet",
        ),
        ("csv", "data.path = '{}' is not allowed; allowed: a file or folder of .csv, .tsv (csv)"),
        ("cifar100", "allowed: a folder with train.parquet"),
        ("speech-commands", "allowed: a folder of WORD/SPEAKER_nohash_N.wav"),
    ],
)
def test_a_folder_with_nothing_in_it(tmp_path, name, words):
    assert words.format(tmp_path) in error_of(name, tmp_path)
    assert "data.path" in error_of(name, tmp_path / "none")
