"""The README's table of rivals, made from tools/results/rivals.json.

    python -m tools.rivals.readme
"""

from __future__ import annotations

import json
from typing import Any, Final

from tools.drawing import RESULTS
from tools.rivals.showing import number

SIZE: Final = 10_000
COLUMNS: Final = (  # row, processes, figure, heading
    ("repeated lookup", 1, "each", "repeated lookup"),
    ("first lookup", 1, "each", "first lookup in another process"),
    ("batch lookup", 1, "each", "in a batch"),
    ("insert", 1, "each", "insert"),
    ("batch insert", 1, "each", "in a batch"),
    ("insert", 4, "p50", "insert by 4 at once, p50"),
    ("insert", 4, "p99", "p99"),
)


def table(record: dict[str, Any]) -> str:
    found = {(each["row"], each["processes"], each["rival"]): each for each in record["figures"] if each["size"] == SIZE}
    memory = record["memory"][-1]["bytes"]
    processes = max(memory["shmpool"], key=int)
    heads = [f"us, {SIZE:,} names", *(heading for *_, heading in COLUMNS), f"memory of {processes} that know 100,000"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for rival in record["versions"]:
        cells = [number(found.get((row, count, rival), {}).get(figure)) for row, count, figure, _ in COLUMNS]
        lines.append([f"**{rival}**" if rival == "shmpool" else rival, *cells, f"{memory[rival][processes] / 2**20:.0f} MiB"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table(json.loads((RESULTS / "rivals.json").read_text())))
