"""All rivals, by name."""

from typing import Final

from tools.rivals.embedded import EMBEDDED
from tools.rivals.rival import Rival
from tools.rivals.served import SERVED

RIVALS: Final[dict[str, Rival]] = {rival.name: rival for rival in (*EMBEDDED, *SERVED)}
