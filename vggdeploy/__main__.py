"""``python -m vggdeploy``, and the console script."""

from __future__ import annotations

import gc
import sys


def entry() -> None:
    """Run the command line. It is imported here, so that Ctrl-C then ends as it does later."""
    try:
        from vggdeploy import streams

        streams.secure()
        from vggdeploy.cli import main

        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130  # errors.EXIT_INTERRUPTED, which may not be there yet
    # The process ends with all that it holds. Python would first look through it for garbage, which
    # takes longer than some commands.
    gc.freeze()
    raise SystemExit(code)


if __name__ == "__main__":
    entry()
