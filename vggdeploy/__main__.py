"""``python -m vggdeploy``."""

from vggdeploy.cli import entry

entry()
