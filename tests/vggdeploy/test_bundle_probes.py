"""Probes: written and read without pickles, and refused in any other form."""

import contextlib

import numpy as np
import pytest

from vggdeploy.bundle import Probes
from vggdeploy.errors import BundleError

IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
SCORES = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "probes.npz"


def test_labels_may_be_absent(file):
    Probes(IMAGES, SCORES, None).save(file)
    assert Probes.load(file).labels is None
    Probes(IMAGES, SCORES, np.array([3, 7])).save(file)
    assert Probes.load(file).labels.tolist() == [3, 7]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # numpy's, on a bad zip
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused(file, share):
    Probes(IMAGES, SCORES, None).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BundleError, match=r"probes\.npz cannot be read"):
        Probes.load(file)


@pytest.mark.parametrize("content", [b"text", bytes(200)])
def test_a_file_of_another_format_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"probes\.npz cannot be read"):
        Probes.load(file)


def test_a_single_array_is_refused(file):
    with file.open("wb") as stream:
        np.save(stream, IMAGES)
    with pytest.raises(BundleError, match=r"probes\.npz"):
        Probes.load(file)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": IMAGES},
        {"reference": SCORES},
        {"images": IMAGES, "reference": SCORES[:1]},
        {"images": IMAGES[0], "reference": SCORES},
        {"images": np.array([{}, {}], object), "reference": SCORES},
    ],
)
def test_other_arrays_are_refused_and_pickles_never_loaded(file, arrays):
    np.savez(file, **arrays)
    with pytest.raises(BundleError, match=r"probes\.npz"):
        Probes.load(file)


def test_no_damaged_byte_of_probes_is_a_bug(tmp_path):
    """Damage that a forger's digest covers: it is read, or refused by name."""
    Probes(IMAGES, SCORES, np.array([3, 7])).save(tmp_path / "probes.npz")
    whole = (tmp_path / "probes.npz").read_bytes()
    for place in range(len(whole)):
        for change in (0x01, 0x80, 0xFF):
            content = bytearray(whole)
            content[place] ^= change
            (tmp_path / "probes.npz").write_bytes(content)
            with contextlib.suppress(BundleError):
                Probes.load(tmp_path / "probes.npz")


@pytest.mark.parametrize(
    ("images", "reference", "labels"),
    [
        (IMAGES.astype(np.float32), SCORES, None),
        (IMAGES[0], SCORES, None),
        (IMAGES, SCORES.astype(np.float64), None),
        (IMAGES, SCORES[0], None),
        (IMAGES, np.float32(1), None),
        (IMAGES, SCORES[:1], None),
        (IMAGES[:0], SCORES[:0], None),
        (IMAGES, SCORES, np.array([3])),
        (IMAGES, SCORES, np.array(3)),
    ],
)
def test_arrays_of_another_kind_are_refused(file, images, reference, labels):
    Probes(images, reference, labels).save(file)
    with pytest.raises(BundleError, match="does not hold probes"):
        Probes.load(file)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused(file, score):
    reference = SCORES.copy()
    reference[1, 3] = score
    Probes(IMAGES, reference, None).save(file)
    with pytest.raises(BundleError, match=r"does not hold probes.*scores that are finite"):
        Probes.load(file)
