"""Speech Commands: one-second recordings of single words, as fixed log-mel features."""

import hashlib
import wave
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mest_fed.data.arrays import DataSplit
from mest_fed.data.cache import cached, listing_digest, load_array
from mest_fed.data.encoding import Encoding
from mest_fed.data.files import TEST_FRACTION, split_rows
from mest_fed.data.images import class_folders
from mest_fed.data.parts import Column, Part
from mest_fed.data.request import DataRequest, DataSource
from mest_fed.errors import InputError, not_allowed

RATE = 16_000
#: 40 ms windows, every 20 ms, as Zhang et al. (2017), "Hello Edge: keyword spotting on
#: microcontrollers", section 3.1: 49 frames in a second.
WINDOW, STEP, BANDS = 640, 320, 40
_POINTS = 1024
_LOWEST, _HIGHEST = 20.0, 4000.0

#: Share of the speakers who are the test set where no list says who is.
_TEST_SHARE = 0.1

Floats = npt.NDArray[np.float32]


class SpeechCommands(DataSource):
    """``WORD/SPEAKER_nohash_N.wav``, as the archive holds them.

    The test set is what ``testing_list.txt`` names; what ``validation_list.txt`` names is left
    out. Without the lists, a tenth of the speakers are the test set (Warden 2018, "Speech
    Commands", section 7: by a hash of the speaker). Groups are the speakers.
    """

    name = "speech-commands"

    def __call__(self, request: DataRequest) -> DataSplit:
        """Load both parts.

        Raises
        ------
        InputError
            If files are missing or wrong.
        """
        request.refuse_options(self.name)
        if request.columns.groups not in ("", "speaker_id"):
            raise not_allowed(
                "data.partition", f"column:{request.columns.groups}", "column:speaker_id"
            )
        part = self.read(request)
        train, test = _parts(Path(request.path).expanduser(), part)
        if not (len(train) and len(test)):
            train, test = split_rows(part, TEST_FRACTION)
        encoding = Encoding.fit(part, rows=train)
        whole = encoding.encode(part)
        return DataSplit(whole.take(train), whole.take(test), encoding=encoding)

    def read(self, request: DataRequest) -> Part:
        """Read all recordings of a folder.

        Raises
        ------
        InputError
            If there are none, or one is no mono recording of 16 kHz and 16 bits.
        """
        folder = Path(request.path).expanduser()
        words = [word for word in class_folders(folder) if not word.name.startswith("_")]
        files = [file for word in words for file in sorted(word.glob("*.wav"))]
        if not request.path or not files:
            allowed = "a folder of WORD/SPEAKER_nohash_N.wav"
            raise not_allowed(request.key, request.path, allowed)

        def build(target: Path) -> None:
            shape = (len(files), 1, BANDS, 1 + (RATE - WINDOW) // STEP)
            features = np.lib.format.open_memmap(target / "features.npy", "w+", np.float32, shape)
            for row, file in enumerate(files):
                features[row, 0] = log_mel(read_wave(file, request.key))
            features.flush()

        folder_name = f"speech-{listing_digest(folder, files)}"
        features = load_array(cached(folder_name, build), "features.npy")
        return Part(
            f"{request.key}: {folder}",
            [Column("audio", features)],
            [Column("label", np.array([file.parent.name for file in files]))],
            np.array([_speaker(file) for file in files]),
            [str(file.relative_to(folder)) for file in files],
        )


def _speaker(file: Path) -> str:
    return file.stem.partition("_nohash_")[0]


def _parts(folder: Path, part: Part) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of training and test."""
    assert part.places is not None
    assert part.groups is not None
    lists = [folder / f"{name}_list.txt" for name in ("testing", "validation")]
    if lists[0].is_file():
        names = [
            set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()
            for file in lists
        ]
        places = [Path(place).as_posix() for place in part.places]
        test = np.array([place in names[0] for place in places])
        train = ~test & np.array([place not in names[1] for place in places])
    else:
        test = np.array([_share(speaker) < _TEST_SHARE for speaker in part.groups])
        train = ~test
    return np.flatnonzero(train), np.flatnonzero(test)


def _share(speaker: str) -> float:
    """Return where in [0, 1) a hash puts a speaker."""
    digest = hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) / 16.0 ** len(digest)


def read_wave(file: Path, key: str) -> Floats:
    """Read one second of sound in [-1, 1): longer recordings are cut, shorter ones end in silence.

    Raises
    ------
    InputError
        If the file is no mono recording of 16 kHz and 16 bits.
    """
    try:
        with wave.open(str(file), "rb") as sound:
            form = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            content = sound.readframes(RATE)
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"{key}: {file} is no sound file ({error or 'it is cut off'})") from error
    if form != (1, 2, RATE):
        channels, width, rate = form
        raise InputError(
            f"{key}: {file} has {channels} channels of {8 * width} bits at {rate} Hz; "
            f"allowed: 1 channel of 16 bits at {RATE} Hz"
        )
    samples = np.frombuffer(content[: len(content) // 2 * 2], "<i2").astype(np.float32) / 32768
    return np.pad(samples, (0, RATE - len(samples)))


def log_mel(samples: Floats) -> Floats:
    """Return the log energies of mel bands: float32, shape ``(40, 49)`` for a second.

    Bands are triangles on the mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987) from 20 to
    4,000 Hz.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::STEP]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(WINDOW), _POINTS)))
    return np.log(_bands() @ power.T + 1e-6).astype(np.float32)


@cache
def _bands() -> npt.NDArray[np.float64]:
    """Return the weight of each frequency in each band, shape ``(40, 513)``."""

    def mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return 2595 * np.log10(1 + np.asarray(hertz, np.float64) / 700)

    edges = np.linspace(mel(_LOWEST), mel(_HIGHEST), BANDS + 2)
    at = mel(np.arange(_POINTS // 2 + 1) * RATE / _POINTS)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((at - low) / (centre - low), (high - at) / (high - centre)), 0, None)


SPEECH_COMMANDS = SpeechCommands()
