"""Collection alone at several image counts, beside NNCF:
``python -m vggdeploy.benchmarks.collection --images 64 256 512 [FLAGS]``.

Every collection runs in a process of its own that finds the FP32 graph in its stage cache, and so
does every ``nncf.quantize``. Where more images are asked for than there are, they are repeated:
each time is decoded and observed anew.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import cli, dataset, inputs, machine, results
from vggdeploy.benchmarks import competitors
from vggdeploy.benchmarks.children import COLLECT, Children
from vggdeploy.benchmarks.competitors import NNCF
from vggdeploy.cache import Cache
from vggdeploy.errors import ConfigError
from vggdeploy.inputs import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.benchmarks.children import Outcome
    from vggdeploy.dataset import Dataset

COUNTS = "64,256,512"


@dataclass(frozen=True)
class Measured:
    """Both at one image count."""

    images: int
    ours: Outcome
    nncf: Outcome

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping: of each, seconds of the collection, of all, and peak memory."""
        return {
            "images": self.images,
            **{
                name: {
                    "collect_seconds": made.collect_seconds,
                    "seconds": made.seconds,
                    "peak_bytes": made.peak_bytes,
                    "note": f"failed: {made.error}" if made.error else made.note,
                }
                for name, made in (("ours", self.ours), (NNCF, self.nncf))
            },
        }


def counts(texts: Sequence[str]) -> list[int]:
    """Image counts from words and commas, each of them once.

    Raises:
        ConfigError: for what is no count.
    """
    words = [word for text in texts for word in text.split(",") if word]
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(
            "--images is wrong",
            got=" ".join(texts) or "nothing",
            expected="numbers of images, such as " + COUNTS.replace(",", " "),
            fix="mend it",
        )
    return list(dict.fromkeys(map(int, words)))


def repeated(images: Dataset, count: int, folder: Path) -> None:
    """Fill a folder with links to `images`, over and over until there are `count`."""
    folder.mkdir(parents=True)
    for index in range(count):
        path = images.samples[index % len(images)].path.resolve()
        (folder / f"{index:06}{path.suffix}").symlink_to(path)


def cells(row: Measured) -> tuple[str, ...]:
    """A row as it is shown."""
    figures = (
        (row.ours.collect_seconds, 1.0, ".1f"),
        (row.ours.peak_bytes, 1e-9, ".2f"),
        (row.nncf.collect_seconds, 1.0, ".1f"),
        (row.nncf.seconds, 1.0, ".1f"),
        (row.nncf.peak_bytes, 1e-9, ".2f"),
    )
    return str(row.images), *(
        "" if value is None else format(value * scale, form) for value, scale, form in figures
    )


_COLUMNS = (
    "images", "collect\ns", "peak\nGB", "nncf collect\ns", "nncf quantize\ns", "nncf peak\nGB",
)  # fmt: skip


def main(
    images: Annotated[
        str, typer.Option(metavar="N [N ...]", help="How many; several, one after the other.")
    ] = COUNTS,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    weights: Annotated[str, typer.Option(help="Weights of ours.")] = "demo",
    model: Annotated[Path | None, typer.Option(help="A foreign FP32 graph in their place.")] = None,
    preprocess: Annotated[str | None, typer.Option(help="A preset, or a TOML file.")] = None,
    calib_data: Annotated[str | None, typer.Option(help="A folder of images.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the images.")] = 0,
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Measure the collection of statistics, beside NNCF's, on the same images."""
    results.refuse_overwrite(json, force)
    terminal = cli.terminal
    wanted = counts([images, *(more or [])])
    for name in (COLLECT, NNCF):
        competitors.require(name)
    options = BuildOptions(
        weights=weights, model=model, preprocess=preprocess, calib_data=calib_data, seed=seed
    )
    source = inputs.resolve(options)
    everything = dataset.scan(inputs.choose_images(options, source, Cache())[0].root)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vggdeploy-") as scratch:
        children = Children(Path(scratch), options, source)
        with terminal.step("FP32 graph"):
            children.float_graph()
        for count in wanted:
            folder = everything.root
            if count > len(everything):
                folder = Path(scratch) / f"images-{count}"
                repeated(everything, count, folder)
            made = {}
            for name in (COLLECT, NNCF):
                with terminal.step(f"{name}, {count} images"):
                    made[name] = children.run(
                        name, place=f"{name}-{count}",
                        calib_data=str(folder), calib_images=count,
                    )  # fmt: skip
                said = made[name]
                if said.error:
                    terminal.line(f"{name}, {count} images: {said.error}", style="red")
                else:
                    terminal.done(f"{name} {count}", said.collect_seconds or 0.0, cached=False)
            rows.append(Measured(count, made[COLLECT], made[NNCF]))
    terminal.table(_COLUMNS, [cells(row) for row in rows])
    terminal.line(
        "peak: resident memory of the process, NNCF's of all of nncf.quantize, which does not "
        "collect alone"
    )
    results.write(
        {
            "kind": "collection",
            "model": source.facts(),
            "rows": [row.to_json() for row in rows],
            "system": {**machine.system(), "peers": {"nncf": machine.version("nncf")}},
        },
        json,
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
