"""Folders of images: found, chosen under a seed, decoded, and known by digest.

A folder of class folders is labelled; a flat folder is not. Class folders named by WordNet ids
map to ImageNet's class index, any other names to their sorted order.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from vggdeploy import digests, limits
from vggdeploy.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vggdeploy.preprocess import Preprocess

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what files of these endings hold. It goes by the content, and leaves some
formats to other programs: PostScript, which is one itself, to Ghostscript."""

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError)
"""What Pillow's readers raise for damaged files."""

_WORDNET = re.compile(r"(n\d{8})(?!\d)")
_Source = TypeVar("_Source")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Sample:
    """One image file; `label` is None in a flat folder."""

    path: Path
    label: int | None


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order.

    Attributes:
        root: the folder.
        samples: sorted by path.
        ignored: files in the folder that are no images.
        classes: class index by folder name; empty for a flat folder.
    """

    root: Path
    samples: tuple[Sample, ...]
    ignored: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return all(sample.label is not None for sample in self.samples)

    def labels(self) -> NDArray[np.int64] | None:
        """Labels ``[N]``, or None for a flat folder."""
        if not self.labelled:
            return None
        return np.array([sample.label for sample in self.samples], np.int64)

    def choose(self, count: int | None, seed: int) -> Dataset:
        """`count` images drawn under `seed`, sorted by path again; all when None.

        Raises:
            DatasetError: when there are fewer.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self):
            raise DatasetError(
                f"{self.root} cannot give the images asked for",
                got=f"{count} of {len(self)}",
                expected=f"1 to {len(self)}",
                fix="ask for fewer, or add images" if count > 0 else "ask for 1 or more",
            )
        drawn = random.Random(seed).sample(range(len(self)), count)
        return replace(self, samples=tuple(self.samples[i] for i in sorted(drawn)))

    def without(self, other: Dataset) -> Dataset:
        """The images that are not in `other`."""
        taken = {sample.path for sample in other.samples}
        rest = tuple(sample for sample in self.samples if sample.path not in taken)
        return replace(self, samples=rest)

    def digest(self) -> str:
        """SHA-256 over names and contents; each image's header is checked on the way. Files are read
        for it once.

        Raises:
            DatasetError: for a file that cannot be read or is no image.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        for sample, content in zip(self.samples, parallel(_content, self.samples), strict=True):
            name = sample.path.relative_to(self.root).as_posix()
            total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def judged_digest(self) -> str:
        """SHA-256 over `digest` and labels: an empty class folder moves the labels of others.

        Raises:
            DatasetError: as `digest`.
        """
        labels = [sample.label for sample in self.samples] if self.labelled else None
        return digests.sha256_json([self.digest(), labels])

    def pixels(self, preprocess: Preprocess) -> Iterator[NDArray[np.uint8]]:
        """Each image as uint8 ``[H, W, 3]``, decoded ahead in parallel, in order.

        Raises:
            DatasetError: naming the first image that cannot be decoded or resized.
        """
        return parallel(lambda sample: load(sample.path, preprocess), self.samples)


def scan(root: Path) -> Dataset:
    """Find the images of a folder.

    Raises:
        DatasetError: when it is missing, holds no image, or mixes kinds of class names.
    """
    try:
        present = root.is_dir()
    except OSError as error:
        raise DatasetError(
            f"image folder {root} cannot be read",
            got=error,
            expected="a folder that may be read",
            fix="check its permissions",
        ) from error
    if not present:
        raise DatasetError(
            f"image folder {root} {'is no folder' if root.exists() else 'does not exist'}",
            got="a file" if root.exists() else "nothing there",
            expected="a folder of class folders, or of images",
            fix="check the path",
        )
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in entries if entry.is_dir()]
        flat, ignored = _images(root, recurse=False)
        found: list[Sample] = []
        classes: dict[str, int] = {}
        if flat:
            if any(_images(folder, recurse=True)[0] for folder in folders):
                raise DatasetError(
                    f"image folder {root} is both labelled and flat",
                    got=f"{len(flat)} images beside folders of images",
                    expected="class folders alone, or images alone",
                    fix="move the images into a class folder of their own",
                )
            found = [Sample(path, None) for path in flat]
        else:
            classes = class_indices([folder.name for folder in folders])
            for folder in folders:
                paths, others = _images(folder, recurse=True)
                # An empty folder is a class that happens to have no images here; one with other
                # files is no class, and would shift the labels of those behind it.
                if others and not paths:
                    raise DatasetError(
                        f"class folder {folder} holds no image",
                        got=f"{others} other files",
                        expected="images alone in class folders, whose order makes the labels",
                        fix="remove the folder",
                    )
                ignored += others
                found += [Sample(path, classes[folder.name]) for path in paths]
    except OSError as error:
        raise DatasetError(
            f"image folder {root} cannot be read",
            got=error,
            expected="a folder that may be read",
            fix="check its permissions",
        ) from error
    if not found:
        raise DatasetError(
            f"image folder {root} holds no image",
            got=f"{ignored} other files",
            expected="files ending in " + ", ".join(sorted(SUFFIXES)),
            fix="check the path",
        )
    return Dataset(root, tuple(found), ignored, classes)


def _images(folder: Path, *, recurse: bool) -> tuple[list[Path], int]:
    """The images of a folder, and how many other files it has; what is hidden does not count.

    Raises:
        DatasetError: naming a dangling link, a pipe or the like that calls itself an image.
    """
    paths = sorted(
        path
        for path in (folder.rglob("*") if recurse else folder.iterdir())
        if not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    for path in images:
        if not path.is_file():
            raise DatasetError(
                f"image {path} is no file",
                got="a dangling link" if path.is_symlink() else "a pipe, a socket or a device",
                expected="an image file",
                fix="remove or replace it",
            )
    return images, len(paths) - len(images)


def class_indices(names: Sequence[str]) -> dict[str, int]:
    """Class index of each folder name.

    Raises:
        DatasetError: when names are WordNet ids in part, or not among ImageNet's 1,000.
    """
    wordnet = {name: found[1] for name in names if (found := _WORDNET.match(name))}
    if not wordnet:
        return {name: index for index, name in enumerate(sorted(names))}
    known = imagenet_classes()
    for name in names:
        if wordnet.get(name) not in known:
            raise DatasetError(
                f"class folder {name!r} is not one of ImageNet's 1,000 WordNet ids",
                got=f"the id {wordnet[name]}" if name in wordnet else "no id",
                expected="every class folder named by such an id, or none",
                fix="rename or remove the folder",
            )
    return {name: known[wordnet[name]] for name in names}


@cache
def imagenet_classes() -> dict[str, int]:
    """ImageNet's class index by WordNet id (ILSVRC 2012: ids in sorted order)."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="ascii")
    return {wordnet_id: index for index, wordnet_id in enumerate(text.split())}


def load(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """An image file as the network sees it, but for the arithmetic: uint8 ``[H, W, 3]``.

    Raises:
        DatasetError: as `decode`, and for an image that is too thin to be resized.
    """
    return preprocess.geometry(decode(path), f"image {path}")


def decode(path: Path) -> Image.Image:
    """An image file as 8-bit RGB.

    Gray is repeated, palettes are looked up, CMYK is converted, 16-bit samples are scaled to 8,
    transparency is dropped and EXIF rotation is not applied: what torchvision's loader does, but
    for 16-bit gray, which that loader clips to white.

    Raises:
        DatasetError: naming the file, when it is missing, damaged, too large or of a kind whose
            range is unknown.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _require_plausible(image, path.stat().st_size)
            return _rgb(image, path)
    except FileNotFoundError as error:
        raise DatasetError(
            f"image {path} does not exist",
            got="nothing there",
            expected="an image file",
            fix="check the path",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(
            f"image {path} is too large",
            got=str(error).removeprefix("Image size ").split(" exceeds")[0].strip("()"),
            expected=f"{limits.PIXELS:,} pixels or fewer, {limits.PIXELS_A_BYTE:,} for a byte at most",
            fix="scale it down or remove it",
        ) from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"image {path} is of no known format",
            got="content of another kind",
            expected="one of " + ", ".join(FORMATS),
            fix="remove it, or convert it to PNG",
        ) from error
    except _UNREADABLE as error:
        raise DatasetError(
            f"image {path} cannot be read",
            got=error,
            expected="a whole image",
            fix="remove or replace it",
        ) from error


def _require_plausible(image: Image.Image, file_bytes: int) -> None:
    """Make sure that an image which was opened is worth memory for its pixels.

    Raises:
        Image.DecompressionBombError: when they are too many, or too many for so small a file.
    """
    pixels = image.width * image.height
    most = min(limits.PIXELS, max(limits.PLAIN_PIXELS, limits.PIXELS_A_BYTE * file_bytes))
    if pixels > most:
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} pixels in {file_bytes:,} bytes"
        )


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Rounded to the nearest: 257 is odd, so that nothing lies halfway.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DatasetError(
            f"image {path} has samples of unknown range",
            got=f"mode {image.mode}",
            expected="8 or 16 bits a sample",
            fix="convert it to 8-bit PNG",
        )
    # A palette with transparency goes through RGBA, as Pillow asks.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _content(sample: Sample) -> str:
    """SHA-256 of an image's bytes, once its header has been recognised."""
    try:
        with Image.open(sample.path, formats=FORMATS):
            pass
    except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning):
        decode(sample.path)  # says what is wrong with it
    return digests.sha256_file(sample.path)


def batches(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    """Stack images ``[H, W, 3]`` into ``[size, H, W, 3]``; the last batch may be smaller."""
    held: list[NDArray[np.uint8]] = []
    for image in images:
        held.append(image)
        if len(held) == size:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def parallel(
    work: Callable[[_Source], _Result], items: Iterable[_Source], ahead: int = 4
) -> Iterator[_Result]:
    """Map `work` over `items` in threads, at most `ahead` results early, in order.

    Memory does not grow with the number of items, and an error surfaces at its own place.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
