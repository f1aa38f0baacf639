"""What README.md and docs/ name is there: links, paths, flags, fields, functions; and every command's configuration."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from configs import base, reference
from medvr_jax import main  # noqa: F401 (defines the flags)
from medvr_jax.configuration import leaves, load_config

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FIELDS = dict(leaves(base.get_config()))
SECTIONS = {name.rpartition(".")[0] for name in FIELDS} - {""}
FLAGS = {name for name in main.flags.FLAGS if main.flags.FLAGS.find_module_defining_flag(name) == main.__name__}
PLACEHOLDER = re.compile(r"[A-Z]{3,}|…|\[")  # SEED, VARIANT, FILE, …
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path) -> list[str]:
    """The contents of the fenced blocks of shell commands."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The words of every command line that runs the package or one of the scripts."""
    found = []
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if any(word == "medvr_jax.main" or word.startswith("launch/") for word in words):
                found.append(words)
    return found


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@each_page
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(
        r"(?<![\w/.-])((?:configs|medvr_jax|tests|launch|docs)/[\w./-]*\w|requirements[\w-]*\.txt)", text
    ):
        assert (REPOSITORY / path).exists(), path


@each_page
def test_fields_exist(page: Path) -> None:
    """Those that commands set, and those that stand by themselves as code."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"--config\.([a-z_][\w.]*)", text)
    named += re.findall(r"`(?:--config\.)?([a-z_]+\.[a-z_.]+[a-z0-9_])(?:=[^`]*)?`", text)
    for name in named:
        if name in ("field",) or name.partition(".")[0] not in SECTIONS | {"model"} and "." in name:
            continue
        if name.endswith((".py", ".json", ".jsonl", ".md", ".html", ".sh")):
            continue
        assert name in FIELDS, name


@each_page
def test_commands_are_valid(page: Path) -> None:
    """Flags and modes exist, and every configuration without a placeholder is one that a run would take."""
    for words in commands(page):
        given = [word.lstrip("-").partition("=") for word in words if word.startswith("--") and word != "--dry-run"]
        overrides = [(name.removeprefix("config."), value) for name, _, value in given if name.startswith("config.")]
        flags = {name: value for name, _, value in given if not name.startswith("config.")}
        assert set(flags) <= FLAGS, words
        if "mode" in flags and not PLACEHOLDER.search(flags["mode"]):
            assert flags["mode"] in main.MODES, words
        spec = flags.get("config", "configs/tiny_cpu.py")
        if not PLACEHOLDER.search(" ".join([spec, *(value for _, value in overrides)])):
            load_config(spec, overrides, files=False, mode=flags.get("mode", "train"))


def test_functions_are_where_the_method_says() -> None:
    text = (REPOSITORY / "docs/method.md").read_text(encoding="utf-8")
    found = re.findall(r"((?:`[A-Za-z_.]+`(?:, )?)+)\s+in\s+`(medvr_jax/[\w/]+\.py)`", text)
    assert len(found) > 15
    for names, path in found:
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"^ *(?:def|class) {name}\b", source, re.MULTILINE), f"{name} in {path}"


def test_the_configuration_reference_is_up_to_date() -> None:
    """`python -m configs.reference` makes it anew."""
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page()


def test_the_reference_has_every_field_once() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", reference.page(), re.MULTILINE)
    assert sorted(rows) == sorted(FIELDS) and rows[0] == "trainer"  # as base.py has them
    assert reference.allowed("evr.threshold", 0.0) == "a number"
    assert reference.allowed("rewards.format_penalty", -0.2) == "a number, 0 or less"
    assert reference.allowed("optimizer.learning_rate", 1e-6) == "a number above 0"
    assert reference.allowed("data.name", "synthetic") == "`synthetic`, `jsonl`, `sets`"
