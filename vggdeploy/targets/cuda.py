"""CUDA through PyCUDA: the driver, a device, and what their errors mean.

Work goes to the device's primary context, which torch and CUDA's runtime use too. It is current
only within ``with device.active()``, so whoever else is on the thread finds their own again. That
is also where PyCUDA's exceptions become this project's.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy.errors import ConfigError, MissingError, RunnerError, missing_package
from vggdeploy.targets import libcuda

if TYPE_CHECKING:
    from types import TracebackType

_CONTAINER = "in a container, start it with '--gpus all'"


def driver() -> Any:
    """PyCUDA's driver module, started, with a device.

    Raises:
        MissingError: when PyCUDA, the driver or a device is missing, or the driver is too old.
    """
    if importlib.util.find_spec("pycuda") is None:
        raise missing_package("pycuda", "tensorrt", "running a TensorRT engine")
    try:
        with warnings.catch_warnings():
            # It warns of what the exception then says.
            warnings.simplefilter("ignore")
            import pycuda.driver as cuda
    except ImportError as error:
        raise _unusable(error) from error
    found, needed = cuda.get_driver_version(), cuda.get_version()[0]
    if found // 1000 < needed:
        # Within a major version an older driver runs a newer toolkit's programs ("CUDA
        # Compatibility", minor version compatibility).
        raise MissingError(
            "the NVIDIA driver is too old for PyCUDA",
            got=f"a driver of CUDA {version(found)}",
            expected=f"CUDA {needed}.0 or newer",
            fix="install a newer driver from nvidia.com/drivers, or PyCUDA built with the headers "
            "of that CUDA",
        )
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise _no_device(error) from error
    if not count:
        raise _no_device(None)
    return cuda


def version(number: int) -> str:
    """CUDA's numbers of versions, such as 12040 for 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _unusable(error: ImportError) -> MissingError:
    said = str(error)
    if "undefined symbol" in said:
        return MissingError(
            "the NVIDIA driver is too old for PyCUDA",
            got=said,
            expected="a driver with all that PyCUDA was built for",
            fix="install a newer driver from nvidia.com/drivers",
        )
    if "libcuda" in said:
        return MissingError(
            "there is no NVIDIA driver on this machine",
            got=said,
            expected="the driver's library",
            fix=f"install it from nvidia.com/drivers, or with JetPack; {_CONTAINER}",
        )
    return MissingError(
        "PyCUDA is installed but cannot be loaded",
        got=said,
        expected="a PyCUDA whose libraries load",
        fix="pip install --force-reinstall --no-cache-dir pycuda",
    )


def _no_device(error: Exception | None) -> MissingError:
    return MissingError(
        "there is no NVIDIA GPU to run on",
        got=error or "no device",
        expected="one at least",
        fix=f"'nvidia-smi' shows what is there; {_CONTAINER}",
    )


def ordinal(device: str) -> int:
    """The number of the device that ``--device`` names: GPU.1 is 1.

    GPU is the first, and so is CPU, which stands where ``--device`` is not given: no TensorRT
    engine runs on one.

    Raises:
        ConfigError: for any other name.
    """
    kind, point, number = device.partition(".")
    if device in ("CPU", "GPU"):
        return 0
    if kind == "GPU" and point and number.isdecimal():
        return int(number)
    raise ConfigError(
        "TensorRT has no such device",
        got=device,
        expected="GPU, or GPU.1 for the second",
        fix="mend --device",
    )


@dataclass(frozen=True)
class Facts:
    """What a device is, as the driver tells it.

    Attributes:
        compute_capability: such as ``"8.6"``.
        driver: the CUDA version that the driver is of.
    """

    name: str
    compute_capability: str
    driver: str


class Device:
    """A device's primary context, held until `close`. For one thread.

    Args:
        number: which of the devices that the driver lists.

    Raises:
        MissingError: when it, PyCUDA or the driver is missing.

    Attributes:
        cuda: PyCUDA's driver module.
        lost: whether an error has made the context unusable.
    """

    def __init__(self, number: int = 0) -> None:
        self.cuda = driver()
        self.lost = False
        count = self.cuda.Device.count()
        if number >= count:
            names = [self.cuda.Device(index).name() for index in range(count)]
            raise MissingError(
                f"there is no device GPU.{number}",
                got=", ".join(f"GPU.{index}: {name}" for index, name in enumerate(names)) or "none",
                expected="one that is there",
                fix="choose another with --device",
            )
        self._device = self.cuda.Device(number)
        self.facts = self._facts()
        self._active = _Active(self)
        try:
            self._context = self._device.retain_primary_context()
        except self.cuda.Error as error:
            raise MissingError(
                f"{self.facts.name} cannot be used",
                got=error,
                expected="a context on it",
                fix="'nvidia-smi' shows its state, and who else uses it",
            ) from error

    def _facts(self) -> Facts:
        return Facts(
            name=self._device.name(),
            compute_capability="{}.{}".format(*self._device.compute_capability()),
            driver=version(self.cuda.get_driver_version()),
        )

    def active(self) -> _Active:
        """A ``with`` in which the context is current.

        Raises:
            RunnerError: for exceptions of PyCUDA and of `libcuda` inside of it.
        """
        return self._active

    def push(self) -> None:
        """Make the context current."""
        if self._context is None:
            raise RunnerError(
                f"{self.facts.name} is closed",
                got="a closed device",
                expected="an open one",
                fix="open the runner again",
            )
        self._context.push()

    def usable(self) -> bool:
        """Whether more can be done in the context, which must be current.

        Waits for all that is queued. Errors of a lost device, or of a program that has failed on
        it, stay with the context.
        """
        try:
            self.cuda.Context.synchronize()
        except self.cuda.Error:
            self.lost = True
        return not self.lost

    def failure(self, error: Exception) -> RunnerError:
        """What an error of PyCUDA or `libcuda` means; the context must be current."""
        if not self.usable():
            return RunnerError(
                f"{self.facts.name} is lost, or an error has made its context unusable",
                got=error,
                expected="a context that works",
                fix="'nvidia-smi' and the kernel's log show its state; run again, after a reset "
                "('nvidia-smi --gpu-reset') or a restart if need be",
            )
        if isinstance(error, self.cuda.MemoryError):
            free, total = self.cuda.mem_get_info()
            return RunnerError(
                f"{self.facts.name} has not enough memory",
                got=f"{error}; {free:,} of {total:,} bytes are free",
                expected="enough for the engine and the batch",
                fix="lower --batch, or end what else uses it ('nvidia-smi' shows that)",
            )
        return RunnerError(
            f"{self.facts.name} reports an error",
            got=error,
            expected="none",
            fix="run again; 'nvidia-smi' and the kernel's log show the device's state",
        )

    def close(self) -> None:
        """Release the primary context; only the first call does something.

        Free first what was allocated in it, unless the device is lost: then that cannot be freed,
        and goes with the context.
        """
        context, self._context = self._context, None
        if context is not None:
            # PyCUDA pushes a context to detach it, and leaves it there.
            libcuda.without_contexts(context.detach)


class _Active:
    """The ``with`` of `Device.active`; nests."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._device.push()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cuda = self._device.cuda
        try:
            if isinstance(error, (cuda.Error, libcuda.CallError)):
                raise self._device.failure(error) from error
        finally:
            cuda.Context.pop()
