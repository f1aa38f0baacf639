"""`docs/configuration.md` from `configs/base.py`: every field with its default, what is allowed, and its comment.

python -m configs.reference   # writes the file anew
"""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from configs import base
from medvr_jax.configuration import BELOW_ONE, CHOICES, POSITIVE, RANGES, WHOLE_LISTS, leaves

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs/configuration.md"

_HEAD = """# Configuration

Made from `configs/base.py` by `python -m configs.reference`; not to be edited. A recipe (`configs/*.py`) starts from
these defaults, and `--config.FIELD=VALUE` on the command line changes any of them. What does not fit is refused before
the run starts, with exit status 2 and one line that names the field, what was found and what is allowed. Lists are
given as `a,b`. Letters: B prompts of a step, M trajectories per prompt, P prompt tokens, T response tokens, E tokens
fed at once, I images per prompt, S patches per image, R raster side.
"""


class Named(NamedTuple):
    """An assignment of base.py: a field's or a section's dotted name, with what the comments say of it."""

    name: str
    comment: str
    section: bool


def named(source: str) -> Iterator[Named]:
    """The assignments in order. A comment above one belongs to it, behind the one at its end."""
    above, behind = _comments(source)
    aliases = {"config": ""}
    (function,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "get_config")
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        attributes = [target for target in node.targets if isinstance(target, ast.Attribute)]
        if not attributes:  # config = section()
            continue
        name, is_section = _dotted(attributes[0], aliases), isinstance(node.value, ast.Call)
        for target in node.targets:
            if isinstance(target, ast.Name):
                aliases[target.id] = name
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        parts = [" ".join(behind[line] for line in lines if line in behind), " ".join(above.get(node.lineno, ()))]
        text = ". ".join(part.rstrip(".") for part in parts if part)
        yield Named(name, text, is_section)


def _dotted(target: ast.expr, aliases: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    assert isinstance(target, ast.Name)
    return ".".join([aliases[target.id], *reversed(parts)]).lstrip(".")


def _comments(source: str) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Line -> the whole lines of comment right above it; line -> the comment at its end."""
    above: dict[int, list[str]] = {}
    behind: dict[int, str] = {}
    waiting: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").rstrip()
            if token.line.lstrip().startswith("#"):
                waiting.append(text)
            else:
                behind[token.start[0]] = text
        elif token.type == tokenize.NAME and waiting:
            above[token.start[0]] = waiting
            waiting = []
    return above, behind


def allowed(name: str, default: Any) -> str:
    """What a field may be, in words."""
    if name in CHOICES:
        return ", ".join(f"`{choice}`" for choice in CHOICES[name])
    if isinstance(default, bool):
        return "`true`, `false`"
    if isinstance(default, tuple):
        return "a list of whole numbers" if name in WHOLE_LISTS else "a list"
    if isinstance(default, str):
        return "text"
    kind = "a whole number" if isinstance(default, int) else "a number"
    low, high = RANGES.get(name, (1 if isinstance(default, int) else 0, math.inf))
    if name in POSITIVE:
        return f"{kind} above 0"
    if math.isinf(low) and math.isinf(high):
        return kind
    if math.isinf(high):
        return f"{kind}, {low} or more"
    if math.isinf(low):
        return f"{kind}, {high} or less"
    return f"{kind}, {low} to {high}"


def page() -> str:
    """The whole page as Markdown."""
    defaults = dict(leaves(base.get_config()))
    parts = [_HEAD, "## The run\n", *_TABLE]
    for entry in named(Path(base.__file__).read_text(encoding="utf-8")):
        if entry.section:
            said = f"{_cell(entry.comment)}\n" if entry.comment else ""
            parts += [f"\n## {entry.name}\n", said, *_TABLE] if said else [f"\n## {entry.name}\n", *_TABLE]
            continue
        default = defaults[entry.name]
        shown = "empty" if default in ("", ()) else f"`{json.dumps(default)}`"
        may_be = allowed(entry.name, default)
        may_be += " below 1" if entry.name in BELOW_ONE else ""
        parts.append(f"| `{entry.name}` | {shown} | {may_be} | {_cell(entry.comment)} |")
    return "\n".join(parts) + "\n"


_TABLE = ("| field | default | allowed | meaning |", "|---|---|---|---|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(REPOSITORY)}: {len(dict(leaves(base.get_config())))} fields")


if __name__ == "__main__":
    main()
