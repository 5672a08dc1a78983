"""Each input of the corpus is decoded correctly or refused with one clear error, in bounded time and memory."""

import re
import time
from pathlib import Path

import pytest

from tests.media import corpus
from tests.media.case import Case
from tests.media.corpus_videos import plain
from tests.media.misbehaving_server import misbehaving
from tests.media.reader import Reader

HANG = 30.0  # seconds after which a reading counts as hung, and its process is killed
SLOW = 8.0  # seconds that a reading may take on a busy machine
TOLERANCE = 4.0  # of colours, out of 255: what codecs round


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def address(folder):
    with misbehaving(plain(folder).read_bytes()) as address:
        yield address


@pytest.fixture(scope="module")
def read():
    reader = Reader()
    yield reader
    reader.stop()


@pytest.mark.parametrize("case", corpus.CORPUS, ids=lambda case: case.name)
def test_each_input_is_decoded_right_or_refused(case: Case, folder, address, read):
    source = corpus.make(case, folder, address)
    found = read(case.kind, source, case.settings, case.limits, HANG)
    assert not {"hung", "died", "crash"} & set(found), found
    assert found["seconds"] < SLOW
    if case.refused:
        refused(case, found)
    else:
        decoded(case, found)


def refused(case: Case, found: dict) -> None:
    assert "error" in found, f"decoded instead: {found}"
    assert re.search(case.refused, found["reason"])
    # "<source>: <reason>. <remedy>."
    assert found["error"].endswith(f": {found['reason']}. {found['remedy']}.")
    assert found["remedy"]
    assert "secret words" not in found["error"]
    assert " object at 0x" not in found["error"]


def decoded(case: Case, found: dict) -> None:
    assert "error" not in found, found
    if case.numbers is not None:
        assert found["numbers"] == case.numbers
    if case.greys is not None:
        expected = [[grey] * 3 for grey in case.greys]
        assert found["means"] == [pytest.approx(grey, abs=TOLERANCE) for grey in expected]
    if case.colour is not None:
        assert found["means"] == [pytest.approx(list(case.colour), abs=TOLERANCE)]
    if case.size is not None:
        assert found["size"] == case.size
    if case.total is not None:
        assert found["total"] == case.total


def test_the_corpus_is_large_and_its_names_are_unique():
    names = [case.name for case in corpus.CORPUS]
    assert len(set(names)) == len(names) >= 170  # the number in docs/media.md and docs/reliability.md


def sleeper(connection) -> None:
    connection.send("ready")
    connection.recv()
    time.sleep(60)


def dying(connection) -> None:
    connection.send("ready")
    connection.recv()


def test_a_reading_that_hangs_or_dies_is_reported(monkeypatch):
    from tests.media import reader

    read = Reader()
    monkeypatch.setattr(reader, "serve", sleeper)
    assert read("video", "a.mp4", None, None, timeout=0.2) == {"hung": 0.2}
    monkeypatch.setattr(reader, "serve", dying)
    assert read("video", "a.mp4", None, None, timeout=30) == {"died": 0}


def test_memory_of_the_reading_process_is_bounded(read):
    # 2 GB of floats are twice the memory limit of the process
    found = read("image", Hungry(), None, None, HANG)
    assert "MemoryError" in found["crash"] or "memory" in found["crash"]


class Hungry:
    """A source that allocates 2 GB when it is inspected."""

    def __str__(self):
        return str(len(bytearray(2 << 30)))
