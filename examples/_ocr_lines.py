"""Lines of text: made up, rendered as the recogniser wants them, and decoded again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 48  # of the network's input
WIDTHS = (480, 640)  # a line is padded to the next one, so that there are few programs
SIZES = (16, 20, 26, 34, 48)
FONTS = (None, "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
_WORDS = """
    about after again air along always animal answer apple around autumn bakery balance before
    below between black bottle bridge bright brown button camera candle carbon careful castle
    centre change chapter circle clever coffee colour copper corner cotton country cousin dancer
    daughter decide deliver desert dinner doctor double dragon early eleven engine enough
    evening family famous farmer fifty figure finger flower forest forward fourteen friend
    frozen garden gentle giant glass golden grape green guitar hammer harbour harvest heavy
    hidden history honey hundred island jacket journey jungle kettle kitchen ladder language
    laughter lemon letter library little lizard machine magnet market meadow memory message
    middle minute mirror monkey morning mountain museum music narrow needle never night number
    object ocean office orange orbit other outside painter paper pepper picture planet pocket
    poetry purple puzzle quarter question quick quiet rabbit railway rainbow random record
    ribbon river rocket rough saddle sample school season second seven shadow silver simple
    sixty smooth spring square station stone summer sunset surface table temple thunder ticket
    tiger tomato travel tunnel turtle twelve uncle under unusual valley velvet village violet
    visitor walnut water weather whisper window winter wizard wonder wooden yellow yesterday
    zebra zigzag
"""
WORDS = _WORDS.split()


class Line(NamedTuple):
    """A rendered line.

    Attributes:
        text: what it says.
        pixels: ``[3, HEIGHT, one of WIDTHS; float32]`` in [-1, 1]; zeros on the right.
    """

    text: str
    pixels: np.ndarray


def make_lines(count: int, seed: int) -> list[Line]:
    """Lines of varied text, in all fonts and sizes; the same ones for the same seed."""
    rng = random.Random(seed)
    kinds = [_sentence, _sentence, _title, _price, _date, _identifier, _address, _list, _number]
    lines = []
    for i in range(count):
        text = kinds[i % len(kinds)](rng)
        lines.append(Line(text, render(text, rng.choice(FONTS), rng.choice(SIZES))))
    return lines


def _sentence(rng: random.Random) -> str:
    words = " ".join(rng.sample(WORDS, rng.randint(2, 4)))
    return words.capitalize() + rng.choice([".", "!", "?"])


def _title(rng: random.Random) -> str:
    return " ".join(rng.sample(WORDS, 2)).upper() + f" {rng.randint(1, 99)}"


def _price(rng: random.Random) -> str:
    return f"{rng.choice(WORDS).title()}: ${rng.randint(1, 9999)}.{rng.randint(0, 99):02}"


def _date(rng: random.Random) -> str:
    day = f"{rng.randint(1990, 2039)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return f"{day} {rng.randint(0, 23):02}:{rng.randint(0, 59):02}"


def _identifier(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=3))
    return f"No. {letters}-{rng.randint(10_000, 99_999)}/{rng.randint(1, 99)}"


def _address(rng: random.Random) -> str:
    first, second = rng.sample(WORDS, 2)
    return f"{first}@{second}.{rng.choice(['com', 'org', 'net'])}"


def _list(rng: random.Random) -> str:
    return ", ".join(rng.sample(WORDS, 2)) + f" ({rng.randint(2, 60)}%)"


def _number(rng: random.Random) -> str:
    return f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}"


def render(text: str, font: str | None, size: int) -> np.ndarray:
    """A line in dark on light, scaled to the network's height.

    Args:
        text: to write.
        font: one of DejaVu's, which come with matplotlib; None is the font inside Pillow.
        size: of the font in pixels, before scaling.

    Returns:
        ``[3, HEIGHT, one of WIDTHS; float32]``.
    """
    if font is None:
        face = ImageFont.load_default(size)
    else:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        face = ImageFont.truetype(str(folder / f"{font}.ttf"), size)
    left, top, right, bottom = face.getbbox(text)
    margin = size // 4
    image = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), 240)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=face, fill=20)
    width = min(round(image.width * HEIGHT / image.height), max(WIDTHS))
    image = image.resize((width, HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    padded = min(w for w in WIDTHS if w >= width)
    return np.tile(np.pad(pixels, ((0, 0), (0, padded - width))), (3, 1, 1))


def by_width(lines: Sequence[Line], size: int) -> list[list[int]]:
    """Indices of lines in batches of one width and of ``size`` lines at most."""
    batches = []
    for width in WIDTHS:
        same = [i for i, line in enumerate(lines) if line.pixels.shape[-1] == width]
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


def decode(classes: Iterable[int], characters: Sequence[str]) -> str:
    """Greedy CTC: repetitions become one, then blanks (class 0) are dropped.

    Args:
        classes: the likeliest one at each place.
        characters: of classes 1, 2 and so on.
    """
    text, previous = [], 0
    for index in map(int, classes):
        if index not in (0, previous):
            text.append(characters[index - 1])
        previous = index
    return "".join(text)


def equal_characters(a: str, b: str) -> float:
    """Which part of the characters agrees: 1 - edits / length of the longer one."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (left != right), row[j] + 1, row[j - 1] + 1)
    return 1 - row[-1] / max(len(a), len(b), 1)
