"""Yes and no in Chinese, which has no two words for them: the verb of the question is repeated, or negated.

Read as strictly as in English: the answer begins with a word that affirms or denies, and does not say the opposite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

CHARACTER = re.compile("[\u3400-\u9fff\uf900-\ufaff]")

_DENIES = ("不是", "没有", "不存在", "不能", "不可以", "不会", "不对", "不正确", "并非", "并不", "并没有")
_DENIES_ALONE = frozenset({"否", "不", "无", "没", "非", "错", "错误", *_DENIES})
_AFFIRMS = ("是", "有", "存在", "可以")
_AFFIRMS_ALONE = frozenset({"是的", "有的", "对", "对的", "正确", "能", "会", *_AFFIRMS})
_UNSURE = ("有可能", "有时")
_NEGATION = re.compile("[不没否无非]")
_BETWEEN_CLAUSES = re.compile(r"[\s,.;:!?。、()/]+")
_BETWEEN_ALTERNATIVES = re.compile(r"(?:[\s,.;:!?。、()/或和与又]|还是)+")
_ENGLISH = ((re.compile("(?<![a-z])yes(?![a-z])"), "是"), (re.compile("(?<![a-z])no(?![a-z])"), "否"))


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" of a normalised text with Chinese characters, None where it says neither, or both."""
    for word, character in _ENGLISH:
        text = word.sub(character, text)
    text = text.strip()
    first = _BETWEEN_CLAUSES.split(text)[0]
    denial = first if first in _DENIES_ALONE else next(filter(first.startswith, _DENIES), "")
    if denial:
        rest = text.removeprefix(denial)
        double = rest.startswith(("没", "不", "无"))  # "not without"
        return None if double or _affirms(_BETWEEN_ALTERNATIVES.split(rest)) else "no"
    if first in _AFFIRMS_ALONE or (first.startswith(_AFFIRMS) and not first.startswith(_UNSURE)):
        return None if _NEGATION.search(text) else "yes"
    return None


def _affirms(parts: Iterable[str]) -> bool:
    return not _AFFIRMS_ALONE.isdisjoint(parts)
