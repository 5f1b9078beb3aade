"""Broken images: the same for a seed, whole machines, with the truth of what was there."""

import json

import pytest

from inspector import memory
from inspector.kernel import scenario
from lab import broken, judging, mutated
from lab.expectation import from_truth, truth_beside
from lab.host import LabError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    assert mutated.make(out, 17, 12) == 12
    return out


def test_every_image_is_one_that_judge_finds_with_its_truth(made):
    images = judging.images(made)
    assert len(images) == 12
    for image in images:
        assert truth_beside(image) is not None
        from_truth(truth_beside(image))


def test_a_seed_makes_the_same_images(made, tmp_path):
    mutated.make(tmp_path, 17, 12)
    for image in judging.images(made):
        assert (tmp_path / image.name).read_bytes() == image.read_bytes()


def test_seeds_differ(made, tmp_path):
    mutated.make(tmp_path, 18, 1)
    (other,) = judging.images(tmp_path)
    assert all(other.read_bytes() != p.read_bytes() for p in judging.images(made))


def test_the_edits_are_in_the_image(made):
    """The last edit of each is there as the record says, as far as it lies in RAM."""
    for image in judging.images(made):
        edits = json.loads(image.with_name(f"{image.stem}.edits.json").read_text())
        last = edits[-1]
        at, data = int(last["address"], 16), bytes.fromhex(last["data"])
        raw = image.read_bytes()
        assert len(raw) == 256 << 20
        assert raw[at : at + len(data)] == data[: max(len(raw) - at, 0)]


def test_nothing_of_the_machine_is_missing(made):
    with memory.open(str(judging.images(made)[0])) as opened:
        assert opened.read(0, 4096)
        assert opened.read((256 << 20) - 4096, 4096)


def test_a_fault_keeps_the_truth_of_the_whole_image(tmp_path):
    text = mutated.SCENARIOS["files"].format(kernel="linux-7.3", seed=4)
    base = scenario.parse(text, "files")
    left = broken.make(tmp_path, "x", base, ["memfd-size", "session-name-empty", "session-cycle"])
    assert set(left) < {"memfd-size", "session-name-empty", "session-cycle"}
    truth = from_truth(tmp_path / "x-session-cycle.truth.json")
    assert len(truth.files) == 5
    assert {r.name for r in truth.regions} == {"trace", "oops"}
    assert truth.kho_test


def test_each_fault_that_fits_makes_one_image(tmp_path):
    count = mutated.faulty(tmp_path, 3)
    names = {p.stem.split("-", 2)[2] for p in judging.images(tmp_path)}
    assert count == len(names) == len(judging.images(tmp_path)) > 40
    assert {"session-cycle", "map-garbage", "memfd-seals"} <= names


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="write"):
        mutated.make(tmp_path / "file", 1, 1)
