"""All rivals, by name."""

from typing import Final

from tools.rivals.embedded import EMBEDDED
from tools.rivals.ours import OURS
from tools.rivals.rival import Rival
from tools.rivals.served import SERVED

RIVALS: Final[dict[str, Rival]] = {rival.name: rival for rival in (OURS, *EMBEDDED, *SERVED)}
