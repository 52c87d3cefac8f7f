"""Measured copies, on a driver whose clock copies alone move on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from host import INVALID_VALUE, OUT_OF_MEMORY

from vggdeploy import targets
from vggdeploy.errors import RunnerError
from vggdeploy.targets import cuda_copies

if TYPE_CHECKING:
    from host import Host

RATE = 250
"""Bytes a microsecond: 0.25 GB/s."""

SIZE = 1 << 20


def test_rates_are_bytes_over_the_events_time(host: Host) -> None:
    host.set("rate", RATE)
    found = cuda_copies.measure(largest=SIZE)
    # Within the device a byte is read and written.
    assert found.within == pytest.approx(2 * RATE * 1e6, rel=1e-3)
    assert found.upload == pytest.approx(RATE * 1e6, rel=1e-3)
    assert found.download == pytest.approx(RATE * 1e6, rel=1e-3)
    assert not host.live()


def test_each_copy_is_queued_between_two_events(host: Host) -> None:
    host.set("rate", RATE)
    host.set("trace", 1)
    cuda_copies.measure(largest=SIZE, repeats=2)
    seen = [line.split()[0] for line in host.trace()]
    for name in ("cuMemcpyDtoDAsync", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"):
        at = [place for place, found in enumerate(seen) if found == name]
        assert len(at) == 3  # one of them to warm up
        for place in at:
            assert seen[place - 1] == seen[place + 1] == "cuEventRecord"


def test_the_best_of_several_counts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copies are at half the rate: of the memory to be waked, or of others' work."""
    turns = iter(range(100))
    real = cuda_copies.DeviceBuffer.copy

    def copy(self: cuda_copies.DeviceBuffer, *arguments: object) -> None:
        host.set("rate", RATE if next(turns) == 3 else RATE // 2)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_copies.DeviceBuffer, "copy", copy)
    found = cuda_copies.measure(largest=SIZE, repeats=3)
    assert found.within == pytest.approx(2 * RATE * 1e6, rel=1e-3)


def test_buffers_leave_most_of_the_memory_free(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.set("rate", RATE)
    sizes = []
    real = cuda_copies.DeviceBuffer.__init__

    def note(self: cuda_copies.DeviceBuffer, device: cuda_copies.cuda.Device, size: int) -> None:
        sizes.append(size)
        real(self, device, size)

    monkeypatch.setattr(cuda_copies.DeviceBuffer, "__init__", note)
    monkeypatch.setattr(cuda_copies, "_SHARE", 1 << 12)  # of 4 GiB: 1 MiB
    cuda_copies.measure(repeats=1)
    assert sizes == [1 << 20, 1 << 20]


def test_nothing_free_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_copies, "_SHARE", 1 << 40)
    with pytest.raises(RunnerError, match=r"Host memory 0 has no memory .*bytes are free"):
        cuda_copies.measure()


@pytest.mark.parametrize(
    ("name", "code", "skip", "lose", "said"),
    [
        ("cuMemAlloc", OUT_OF_MEMORY, 0, False, "has not enough memory"),
        ("cuMemAlloc", OUT_OF_MEMORY, 1, False, "has not enough memory"),
        ("cuMemHostAlloc", OUT_OF_MEMORY, 0, False, "has not enough memory"),
        ("cuEventCreate", INVALID_VALUE, 1, False, "reports an error"),
        ("cuMemcpyDtoDAsync", INVALID_VALUE, 0, False, "reports an error"),
        ("cuMemcpyHtoDAsync", INVALID_VALUE, 1, False, "reports an error"),
        ("cuMemcpyDtoHAsync", INVALID_VALUE, 1, False, "reports an error"),
        ("cuMemcpyDtoDAsync", INVALID_VALUE, 1, True, "is lost"),
        ("cuStreamSynchronize", INVALID_VALUE, 2, True, "is lost"),
    ],
)
def test_failures_are_said_and_leave_nothing(
    host: Host, name: str, code: int, skip: int, lose: bool, said: str
) -> None:
    host.set("rate", RATE)
    host.fail(name, code, skip=skip, lose=lose)
    # What failed first is said, and not what could not be freed because of it.
    with pytest.raises(RunnerError, match=f"{said}.*{name} failed"):
        cuda_copies.measure(largest=SIZE)
    assert not host.live()


def test_a_target_says_them_as_a_rating_takes_them(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.set("rate", RATE)
    monkeypatch.setattr(cuda_copies.measure, "__kwdefaults__", {"largest": SIZE, "repeats": 2})
    found = targets.get("trt-int8").copy_rates("GPU")
    assert found == {
        "copy_bytes_per_s": pytest.approx(2 * RATE * 1e6, rel=1e-3),
        "upload_bytes_per_s": pytest.approx(RATE * 1e6, rel=1e-3),
        "download_bytes_per_s": pytest.approx(RATE * 1e6, rel=1e-3),
    }
