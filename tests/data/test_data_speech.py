"""Speech Commands: features of recordings, speakers as groups, and the lists of the archive."""

import wave

import numpy as np
import pytest

from mest_fed.data import load_dataset
from mest_fed.data.speech import BANDS, RATE, log_mel
from mest_fed.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "cache"))


def save(file, samples, rate=RATE, channels=1):
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.asarray(samples, "<i2").tobytes())


def tone(hertz, seconds=1.0):
    return 8000 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)


@pytest.fixture
def folder(tmp_path):
    for word, hertz in (("yes", 400), ("no", 2000)):
        for speaker in ("ada", "bob", "cyd", "dan"):
            save(tmp_path / "speech" / word / f"{speaker}_nohash_0.wav", tone(hertz, 0.7))
    save(tmp_path / "speech" / "_background_noise_" / "hum.wav", tone(50))
    return tmp_path / "speech"


def test_a_tone_is_loudest_in_its_band():
    mel = 2595 * np.log10(1 + np.array([20.0, 1000.0, 4000.0]) / 700)
    features = log_mel((tone(1000) / 32768).astype(np.float32))
    assert features.shape == (40, 49)
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * (BANDS + 1) - 1
    assert abs(features.mean(axis=1).argmax() - expected) < 1


def test_recordings_by_speaker(folder):
    (folder / "testing_list.txt").write_text("no/ada_nohash_0.wav\nyes/ada_nohash_0.wav\n")
    (folder / "validation_list.txt").write_text("no/bob_nohash_0.wav\n")
    data = load_dataset("speech-commands", str(folder), columns={"groups": "speaker_id"})
    assert data.train.input_shape == (1, 40, 49)
    assert data.train.targets.tolist() == [0, 0, 1, 1, 1]  # no, yes
    assert data.train.groups.tolist() == [2, 3, 1, 2, 3]
    assert data.test.groups.tolist() == [0, 0]
    # Recordings of one word are alike here, and end in silence.
    assert np.array_equal(data.train.inputs[0], data.train.inputs[1])
    assert data.train.inputs[0, 0, :, -1].max() < data.train.inputs[0, 0, :, 0].max()


def test_without_lists_there_is_a_test_part(folder):
    data = load_dataset("speech-commands", str(folder))
    assert len(data.train) + len(data.test) == 8
    assert len(data.test) > 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(b"RIFF"), "is no sound file"),
        (lambda file: save(file, tone(100), rate=8000), "1 channels of 16 bits at 8000 Hz"),
        (lambda file: save(file, tone(100), channels=2), "2 channels of 16 bits"),
    ],
)
def test_a_wrong_recording(folder, spoil, words):
    spoil(folder / "yes" / "bob_nohash_0.wav")
    with pytest.raises(InputError, match=r"data\.path: .*yes/bob_nohash_0\.wav") as error:
        load_dataset("speech-commands", str(folder))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
