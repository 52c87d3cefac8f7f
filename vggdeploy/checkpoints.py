"""Checkpoint files: read without running what is in them, written, and fetched.

torch and safetensors are imported where they are used.
"""

from __future__ import annotations

import json
import math
import pickletools
import struct
import urllib.error
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, TYPE_CHECKING, Any, cast

from vggdeploy import limits, topology
from vggdeploy.errors import MissingError, WeightsError, require_package

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

    from vggdeploy.topology import Network

METADATA_KEY = "vggdeploy"
"""Where a .safetensors file of ours says which network it belongs to."""

# torchvision.models.VGG16_Weights.IMAGENET1K_V1; the file name carries the hash torch checks.
_PUBLISHED = {
    "vgg11": "vgg11-8a719046.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
}
_PUBLISHED_AT = "https://download.pytorch.org/models/"


_UNREADABLE = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError,
    AssertionError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What torch's readers raise for damaged files, the one of old checkpoints above all."""


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, memory-mapped where the format allows; code is never run.

    Raises:
        WeightsError: for a truncated or damaged file, or one whose pickle holds code.
    """
    require_package("torch", "export", "the reference network")
    import torch

    if path.suffix == ".safetensors":
        require_package("safetensors", "export", "a .safetensors file")
        import safetensors
        from safetensors.torch import load_file

        _require_header(path)
        try:
            tensors: dict[str, torch.Tensor] = load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        return tensors
    try:
        # Checkpoints from before torch 1.6, torchvision's VGG among them, are no zip archives and
        # cannot be memory-mapped.
        archive = zipfile.is_zipfile(path)
        if archive:
            _require_stored(path)
        else:
            with path.open("rb") as file:
                _require_short(file, _OLD_PICKLES)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except UnpicklingError as error:
        raise WeightsError(
            f"weights file {path} holds more than tensors, or is damaged",
            # torch's own words advise to run the code after all.
            got="objects that only running its code would make, or bytes that are no pickle",
            expected="a state dict of tensors alone",
            fix="save it again with torch.save(model.state_dict(), FILE), or as .safetensors",
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()
    ):
        held = ", ".join(map(str, list(state)[:4])) if isinstance(state, dict) else ""
        raise WeightsError(
            f"weights file {path} is not a state dict",
            got=f"a dict of {held}" if held else type(state).__name__,
            expected="a mapping of names to tensors",
            fix="save the state dict that is inside of it, with torch.save(state_dict, FILE)",
        )
    for key, value in state.items():
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        if kind != "strided" or value.device.type != "cpu":
            raise WeightsError(
                f"weights file {path}: {key} is no dense tensor",
                got=kind if kind != "strided" else f"one on the device {value.device}",
                expected="numbers, all of them",
                fix="save the state dict with dense tensors on the CPU",
            )
    return state


_ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def _require_header(path: Path) -> None:
    """Make sure that a .safetensors file declares no more than it has, before its library reads it
    (https://huggingface.co/docs/safetensors, "Format").

    Raises:
        WeightsError: when it does.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > limits.SAFETENSORS_HEADER_BYTES:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(file.read(length))
        data_bytes = path.stat().st_size - 8 - length
        header.pop("__metadata__", None)
        if len(header) > limits.TENSORS:
            raise ValueError(f"{len(header):,} tensors")
        for name, said in header.items():
            (begin, end), shape = said["data_offsets"], said["shape"]
            # Before anything is multiplied: a text times a number takes any amount of memory.
            sizes = all(type(side) is int and side >= 0 for side in (begin, end, *shape))
            if not sizes or len(shape) > limits.RANK:
                raise ValueError(f"sizes of tensor {name!r} that are none")
            declared = math.prod(shape) * _ELEMENT_BYTES[said["dtype"]]
            if not begin <= end <= data_bytes or declared != end - begin:
                raise ValueError(
                    f"tensor {name!r} of {declared:,} bytes at {begin:,} to {end:,} of {data_bytes:,}"
                )
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _require_stored(path: Path) -> None:
    """Make sure that a zip archive of torch's inflates to nothing: it stores tensors as they are.

    Raises:
        ValueError, zipfile.BadZipFile: when there is more in it than it has bytes, or too many
            parts, or as `_require_short`.
    """
    with path.open("rb") as file:
        limits.require_entries(file, 2 * limits.TENSORS)
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            for part in parts:
                if part.filename.endswith(_PICKLE):
                    with archive.open(part) as pickled:
                        _require_short(pickled, 1)
    held, size = sum(part.file_size for part in parts), path.stat().st_size
    if held > size:
        raise ValueError(f"{len(parts):,} parts of {held:,} bytes in a file of {size:,}")


_PICKLE = "/data.pkl"
"""Of a zip archive, where the rest is numbers."""

_OLD_PICKLES = 5
"""One behind the other, before the numbers of a checkpoint that is no zip archive: torch's magic
number, its version, the machine's sizes, the state dict and the order of the numbers."""


def _require_short(file: IO[bytes], pickles: int) -> None:
    """Make sure that the texts of pickles are as short as names are. What is no pickle is left for
    torch to say.

    Raises:
        OverLimitError: when one is longer.
    """
    for _ in range(pickles):
        try:
            for _ in pickletools.genops(cast("IO[bytes]", _Short(file))):
                pass
        except limits.OverLimitError:
            raise
        except ValueError:
            return


class _Short:
    """A file of which nothing longer than a name is read at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if size > limits.PICKLED_BYTES:
            raise limits.OverLimitError(f"{size:,} bytes where a name may be")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(limits.PICKLED_BYTES + 1)
        if len(line) > limits.PICKLED_BYTES:
            raise limits.OverLimitError(f"more than {limits.PICKLED_BYTES:,} bytes of a name")
        return line


def save(
    path: Path, tensors: Mapping[str, NDArray[Any]], network: Network, preprocess: str
) -> None:
    """Write a .safetensors file that says which network it belongs to."""
    from safetensors.numpy import save_file

    said = {
        "arch": network.arch,
        "num_classes": network.num_classes,
        "width_divisor": network.width_divisor,
        "preprocess": preprocess,
    }
    save_file(dict(tensors), path, metadata={METADATA_KEY: json.dumps(said)})


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"weights file {path} cannot be read",
        got=(str(error) or type(error).__name__).splitlines()[0],
        expected="a whole checkpoint",
        fix="fetch or copy it again",
    )


def metadata(path: Path) -> dict[str, Any]:
    """What `save` recorded in a .safetensors file; empty for any other."""
    if path.suffix != ".safetensors":
        return {}
    require_package("safetensors", "export", "a .safetensors file")
    import safetensors

    _require_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            said = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    kinds = {"arch": str, "num_classes": int, "width_divisor": int, "preprocess": str}
    if not isinstance(said, dict):
        raise WeightsError(
            f"weights file {path}: its metadata is wrong",
            got=type(said).__name__,
            expected="a JSON object",
            fix="fetch or copy it again",
        )
    for key, kind in kinds.items():
        # A bool is an int to isinstance.
        if key in said and (type(said[key]) is not kind or (kind is int and said[key] < 1)):
            raise WeightsError(
                f"weights file {path}: metadata {key} is wrong",
                got=said[key],
                expected=f"a {kind.__name__}",
                fix="fetch or copy it again",
            )
    return {key: said[key] for key in kinds if key in said}


def fetch_published(arch: str) -> Path:
    """torchvision's published checkpoint, fetched by torch with its hash checked."""
    require_package("torch", "export", "the reference network")
    import torch

    if arch not in _PUBLISHED:
        topology.vgg(arch)  # names the known ones
    name = _PUBLISHED[arch]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                _PUBLISHED_AT + name, str(path), hash_prefix=name.split("-")[1].split(".")[0]
            )
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise MissingError(
                f"the published checkpoint {name} cannot be fetched",
                got=error,
                expected="a connection to download.pytorch.org",
                fix=f"put the file at {path}, give --weights FILE, or use --weights demo",
            ) from error
    return path
