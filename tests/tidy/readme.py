"""The examples in a Markdown text: its Python blocks, and the commands of its console and shell blocks."""

import re
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
SHELLS = ("console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Example:
    line: int  # of the text, counted from 1
    code: str

    def __str__(self) -> str:
        return f"line {self.line}"


def python_examples(text: str) -> list[Example]:
    return [Example(line, body) for language, line, body in blocks(text) if language in ("python", "py")]


def commands(text: str) -> list[Example]:
    """The commands: after `$ ` in a console block (the rest is output), each line but comments in a shell block."""
    found = []
    for language, first_line, body in blocks(text):
        if language not in SHELLS:
            continue
        joined = body.replace("\\\n", "\0")  # a continued line is one command
        line = first_line
        for entry in joined.splitlines():
            command = entry.strip()
            if language == "console":
                command = command[2:] if command.startswith("$ ") else ""
            if command and not command.startswith("#"):
                found.append(Example(line, re.sub(r"\0\s*", "", command)))
            line += 1 + entry.count("\0")
    return found


def blocks(text: str) -> list[tuple[str, int, str]]:
    """(language, line of the block's first line, body) of every fenced block that names its language."""
    return [(match[1], text.count("\n", 0, match.start()) + 2, match[2]) for match in FENCE.finditer(text)]
