"""A node's own examples: what it reads, and that each wrong input is one line."""

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mest_fed.data.array_names import ARRAY_NAMES, NAMES_IN_WORDS
from mest_fed.errors import InputError
from mest_fed.link.description import InputDescription
from mest_fed.link.node.data import check_place, read_examples

GIVEN = InputDescription((1, 4, 4), "float32", (), "int64", 3, (0.5,), (0.5,))
COLOUR = InputDescription((3, 4, 6), "float32", (), "int64", 2, classes=("cat", "dog"))
NUMBERS = InputDescription((2,), "float32", (1,), "float32", 1)
INPUTS, TARGETS = np.zeros((5, 1, 4, 4), np.float32), np.array([0, 1, 2, 0, 1])


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "own.npz", **arrays)
    return str(tmp_path / "own.npz")


@pytest.mark.parametrize("names", ARRAY_NAMES)
def test_an_npz_is_read_as_the_runs_types(tmp_path, names):
    arrays = INPUTS.astype(np.float64), TARGETS.astype(np.uint8)
    place = saved(tmp_path, **dict(zip(names, arrays, strict=True)))
    found = read_examples(place, GIVEN)
    assert found.inputs.dtype == np.float32
    assert found.targets.dtype == np.int64
    assert found.targets.tolist() == TARGETS.tolist()


def test_bytes_stay_bytes(tmp_path):
    place = saved(tmp_path, inputs=np.full((5, 1, 4, 4), 7, np.uint8), targets=TARGETS)
    assert read_examples(place, GIVEN).inputs.dtype == np.uint8


WRONG = {
    "shape": {"inputs": INPUTS[:, :, :3], "targets": TARGETS},
    "scalar": {"inputs": np.float32(1), "targets": TARGETS},
    "count": {"inputs": INPUTS, "targets": TARGETS[:4]},
    "empty": {"inputs": INPUTS[:0], "targets": TARGETS[:0]},
    "class too large": {"inputs": INPUTS, "targets": TARGETS + 1},
    "class negative": {"inputs": INPUTS, "targets": TARGETS - 1},
    "class a fraction": {"inputs": INPUTS, "targets": TARGETS + 0.5},
    "texts": {"inputs": INPUTS.astype(str), "targets": TARGETS},
    "complex": {"inputs": INPUTS.astype(complex), "targets": TARGETS},
    "nan": {"inputs": INPUTS + np.nan, "targets": TARGETS},
    "objects": {"inputs": INPUTS, "targets": np.array([None] * 5)},
    "no targets": {"inputs": INPUTS},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_npz_is_one_line(tmp_path, kind):
    refused(saved(tmp_path, **WRONG[kind]), GIVEN)


def test_a_target_that_is_not_finite_is_one_line(tmp_path):
    place = saved(tmp_path, inputs=np.zeros((2, 2)), targets=np.array([[np.inf], [0]]))
    refused(place, NUMBERS, "targets are not all finite")


def test_the_names_of_arrays_are_said_in_one_place(tmp_path):
    refused(saved(tmp_path, z=INPUTS, y=TARGETS), GIVEN, NAMES_IN_WORDS)
    docs = Path(__file__).parents[2] / "docs"
    assert NAMES_IN_WORDS in (docs / "data.md").read_text(encoding="utf-8").replace("`", "")


@pytest.mark.parametrize("data", [b"", b"rubbish", b"PK\x03\x04x", b"\x93NUMPY\x01", None])
def test_a_file_that_is_no_npz_is_one_line(tmp_path, data):
    place = saved(tmp_path, inputs=INPUTS, targets=TARGETS)
    if data is None:  # one array, not an archive
        with open(place, "wb") as file:
            np.save(file, INPUTS)
    else:
        (tmp_path / "own.npz").write_bytes(data)
    refused(place, GIVEN, "cannot be read as .npz")


def test_a_cut_npz_is_one_line_wherever_it_is_cut(tmp_path):
    place = saved(tmp_path, inputs=INPUTS, targets=TARGETS)
    whole = (tmp_path / "own.npz").read_bytes()
    for size in range(1, len(whole), 37):
        (tmp_path / "own.npz").write_bytes(whole[:size])
        refused(place, GIVEN)


@pytest.mark.parametrize("place", ["nothing.npz", "nothing", "/dev/null", ""])
def test_a_place_with_nothing_is_one_line(place):
    refused(place or "nowhere", GIVEN, "--data")


@pytest.fixture
def images(tmp_path):
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (6, 4), colour).save(tmp_path / "images" / name / "1.png")
        Image.new("RGB", (12, 8), colour).save(tmp_path / "images" / name / "2.PNG")
        (tmp_path / "images" / name / "notes.txt").write_text("x")
    return tmp_path / "images"


def test_a_folder_of_images_is_read_in_the_runs_order_of_classes(images):
    found = read_examples(str(images), COLOUR)
    assert found.inputs.shape == (4, 3, 4, 6)
    assert found.inputs.dtype == np.uint8
    assert found.targets.tolist() == [0, 0, 1, 1]
    assert found.inputs[0, :, 0, 0].tolist() == [255, 0, 0]
    assert found.inputs[3, :, 3, 5].tolist() == [0, 0, 255]


def test_wrong_folders_of_images_are_one_line(images, tmp_path, monkeypatch):
    refused(str(images), NUMBERS, "does not go with inputs")
    (images / "horse").mkdir()
    refused(str(images), COLOUR, "horse")
    (images / "horse").rmdir()
    (images / "cat" / "3.png").write_bytes(b"\x89PNG rubbish")
    refused(str(images), COLOUR, "cannot be read as an image")
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), COLOUR, "no folder")
    (tmp_path / "empty" / "cat").mkdir()
    refused(str(tmp_path / "empty"), COLOUR, "has no images")
    whole = builtins.__import__

    def without(name, *rest):
        if name == "PIL":
            raise ModuleNotFoundError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(str(images), COLOUR, "pip install Pillow")


def test_a_reader_of_the_users_own(tmp_path):
    reader = tmp_path / "mine.py"
    reader.write_text(
        "import numpy as np\n"
        "def read(path): return np.zeros((3, 1, 4, 4)), [0, 1, int(path)]\n"
        "def one(path): return 1\n"
        "def ragged(path): return (np.zeros(2), [1, 2], None), np.zeros(3)\n"
        "def raises(path): raise RuntimeError('two\\nlines')\n"
    )
    assert read_examples(f"{reader}:read=2", GIVEN).targets.tolist() == [0, 1, 2]
    refused(f"{reader}:one=2", GIVEN, "gives int")
    refused(f"{reader}:ragged=2", GIVEN, "makes no arrays")
    refused(f"{reader}:raises=2", GIVEN)
    refused(f"{reader}:absent=2", GIVEN)
    refused(f"{tmp_path / 'none.py'}:read=2", GIVEN)


def refused(place, given, text=""):
    with pytest.raises(InputError) as raised:
        read_examples(place, given)
    assert "\n" not in str(raised.value)
    assert text in str(raised.value)


def test_arrays_of_objects_are_refused_without_advice_to_load_them(tmp_path):
    place = saved(tmp_path, inputs=np.array([1, None]), targets=TARGETS[:2])
    junk = tmp_path / "junk.npz"
    junk.write_text("no archive")
    for each, text in ((place, "inputs = 'Python objects'"), (str(junk), "it is no archive")):
        with pytest.raises(InputError, match=text) as refused:
            check_place(each)
        assert "pickle" not in str(refused.value)
        with pytest.raises(InputError, match=text):
            read_examples(each, GIVEN)


def test_a_folder_of_other_things_is_refused_at_once_and_not_listed(tmp_path):
    for number in range(40):
        (tmp_path / f"thing{number:02}").mkdir()
    with pytest.raises(InputError, match="a folder of images") as refused:
        check_place(str(tmp_path))
    assert "thing0" not in str(refused.value)
    Image.new("RGB", (6, 4)).save(tmp_path / "thing00" / "one.png")
    check_place(str(tmp_path))
    with pytest.raises(InputError, match="thing04 and 35 more' is not allowed; allowed: cat, dog"):
        read_examples(str(tmp_path), COLOUR)


def test_a_reader_that_is_not_there_is_refused_before_a_server_is_asked(tmp_path):
    with pytest.raises(InputError, match="none"):
        check_place(f"{tmp_path}/none.py:read=mine.csv")


def test_what_may_not_be_read_says_so(tmp_path, monkeypatch):
    """As of another user's folder, which root would read."""
    place = saved(tmp_path, inputs=INPUTS, targets=TARGETS)
    with monkeypatch.context() as closed:
        closed.setattr(Path, "open", forbidden)
        refused(place, GIVEN, "own.npz cannot be read: Permission denied")
    monkeypatch.setattr(Path, "is_dir", forbidden)
    refused(place, GIVEN, "own.npz cannot be read: Permission denied")


def forbidden(self, *_):
    raise PermissionError(13, "Permission denied")
