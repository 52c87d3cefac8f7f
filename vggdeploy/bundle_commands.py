"""``vggdeploy bundle``: bundles as they are carried, shown and signed; nothing of them is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy import bundle_table, flags, results
from vggdeploy.terminal import Terminal

app = typer.Typer(
    no_args_is_help=True, help="Pack, unpack, inspect and sign bundles; nothing of them is run."
)
terminal = Terminal()

_File = Annotated[Path, typer.Argument(metavar="FILE", help="What 'bundle pack' wrote.")]
_Either = Annotated[
    Path, typer.Argument(metavar="BUNDLE|FILE", help="A bundle's folder, or a packed bundle.")
]


@app.command()
def pack(
    bundle: flags.BundlePath,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Pack a bundle into one file; the same bundle gives the same bytes."""
    from vggdeploy import packing

    results.refuse_overwrite(json, force, out)
    results.refuse_overwrite(str(out), force, flag="--out")
    result = packing.pack(bundle, out, reporter=terminal)
    results.write(result, json)
    terminal.line(
        f"packed {result['bytes'] / 1e6:.1f} MB into {out}, {result['packed_bytes'] / 1e6:.1f} MB",
        style="bold",
    )


@app.command()
def unpack(
    file: _File,
    out: Annotated[Path, typer.Option(help="The bundle's folder.")],
    trusted_keys: flags.TrustedKeys = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Unpack a bundle, every digest checked; it appears whole or not at all."""
    from vggdeploy import packing

    results.refuse_overwrite(json, force, out)
    result = packing.unpack(file, out, force=force, trusted=trusted_keys, reporter=terminal)
    results.write(result, json)
    terminal.line(
        f"unpacked {result['target']}, {result['digest'][:16]}..., to {out}", style="bold"
    )


@app.command()
def inspect(
    bundle: _Either,
    trusted_keys: flags.TrustedKeys = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Show what a bundle is, and whether its files and signatures hold."""
    from vggdeploy import inspection

    results.refuse_overwrite(json, force)
    result = inspection.inspect(bundle, trusted=trusted_keys, reporter=terminal)
    try:
        results.write(result, json)
    finally:
        bundle_table.show_inspect(terminal, result)
    inspection.require(result)


@app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="The private key; the public one goes to OUT.pub.")],
    json: flags.Json = None,
) -> None:
    """Make a pair of Ed25519 keys; no key is ever replaced."""
    from vggdeploy import signing

    results.refuse_overwrite(json, False, out)
    result = signing.generate(out)
    results.write(result, json)
    terminal.line(f"wrote {result['private']}, which signs: keep it where bundles are built")
    terminal.line(f"wrote {result['public']}, which devices trust: key {result['key']}", "bold")


@app.command()
def sign(
    bundle: flags.BundlePath,
    key: Annotated[Path, typer.Option(help="A private key, as 'bundle keygen' makes it.")],
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Sign a bundle that is whole; it may have several signatures."""
    from vggdeploy import bundle as module

    results.refuse_overwrite(json, force)
    result = module.sign(bundle, key)
    results.write(result, json)
    terminal.line(f"signed {result['digest'][:16]}... with key {result['key'][:16]}...", "bold")
