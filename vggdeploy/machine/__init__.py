"""This machine: what a result was measured on, how hot it was, and whether it is another's equal.

Every reader takes the root of the file system, so that tests can lay out a machine. None stands for
what a machine does not tell; nothing is guessed.
"""

from vggdeploy.machine.cpu import saturates
from vggdeploy.machine.facts import LIBRARIES, resident, system, version
from vggdeploy.machine.limits import available_memory
from vggdeploy.machine.same import differences, require_same
from vggdeploy.machine.sensors import State, state, temperatures, throttling

__all__ = [
    "LIBRARIES",
    "State",
    "available_memory",
    "differences",
    "require_same",
    "resident",
    "saturates",
    "state",
    "system",
    "temperatures",
    "throttling",
    "version",
]
