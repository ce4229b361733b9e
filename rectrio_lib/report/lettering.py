"""Names of classes and files in figures: never as formulas, and in a font that has their letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache, wraps

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

# Outline fonts of common systems; Agg cannot draw the bitmaps of colour emoji fonts.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Noto Sans KR", "Source Han Sans", "WenQuanYi Micro Hei", "Microsoft YaHei"),
    *("Malgun Gothic", "Yu Gothic", "PingFang SC", "Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Emoji", "Symbola", "Segoe UI Symbol"),
)


@cache
def families() -> tuple[str, ...]:
    """Return the fonts to draw with: matplotlib's own, then the installed ones of FALLBACKS."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in installed))


@cache
def _letters() -> frozenset[int]:
    fonts = map(font_manager.findfont, families())
    return frozenset().union(*(font_manager.get_font(font).get_charmap() for font in fonts))


def readable(text: str) -> str:
    """Spell out the letters that no installed font has: a Hangul syllable by its sound, an emoji by its name."""
    return "".join(c if c == "\n" or ord(c) in _letters() else _spelled(c) for c in str(text))


def fitted(text: str, most: int = 12) -> str:
    """Cut the middle out of a long name, for the ends of ids tell them apart: "ukben…0073"."""
    half = most // 2
    return text if len(text) <= most else f"{text[: half - 1]}…{text[half - most :]}"


def _spelled(letter: str) -> str:
    name = unicodedata.name(letter, "").lower()
    if unicodedata.category(letter)[0] in "MC":  # accents and selectors that stand alone
        return ""
    if "syllable" in name or "letter" in name:
        return name.rpartition(" ")[2]
    return f"[U+{ord(letter):X}]" if not name or "ideograph" in name else f"[{name}]"


def lettered(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a function draw its texts as they are written: `$` begins no formula, and each letter can be read."""

    @wraps(draw)
    def drawn(*args: object, **options: object) -> Figure:
        with mpl.rc_context({"text.parse_math": False, "font.family": list(families())}):
            figure = draw(*args, **options)
            interactive = mpl.is_interactive()  # a notebook's backend, loaded by its first figure, switches this on
        mpl.interactive(interactive)
        for text in figure.findobj(Text):
            text.set_text(readable(text.get_text()))
        return figure

    return drawn
