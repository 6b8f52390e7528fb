"""The language of the embedded world: a closed set of captions, each with the composition it names.

Six categories after GenEval (Ghosh et al., 2023): one object, two objects, counting, colors, position and
color attribution. A caption names shapes and, where it says so, colours, a count, or a direction; whatever it
does not name is free. Every caption of the world is enumerated here: parsing is a look-up and never a guess.

The split is decided by meaning and not by wording: "a circle left of a square" and "a square right of a
circle", or the two orders of "a red circle and a blue square", are always in the same one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice, permutations, product

from rank_e.errors import RankEError

SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
COLOURS: tuple[str, ...] = ("red", "green", "blue", "yellow")
CATEGORIES: tuple[str, ...] = (
    "one object",
    "two objects",
    "counting",
    "colors",
    "position",
    "color attribution",
)
# Direction of the first object, seen from the second one or from the image's centre: (rows, columns).
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
OPPOSITE: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
COUNTS: dict[int, str] = {2: "two", 3: "three"}
# Share of each category's meanings in a split, and how many there are at least; all others are for training.
# Settings are chosen on "validation"; "held_out" is what is reported.
SHARES_UNSEEN: dict[str, tuple[float, int]] = {"held_out": (0.25, 4), "validation": (0.12, 2)}

_RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_PLACES = {"left": "at the left", "right": "at the right", "above": "at the top", "below": "at the bottom"}


@dataclass(frozen=True, order=True)
class Item:
    """`count` objects of one shape; `colour` "" leaves the colour of each free."""

    shape: str
    colour: str = ""
    count: int = 1

    def __str__(self) -> str:
        quantity = "a" if self.count == 1 else COUNTS[self.count]
        noun = self.shape if self.count == 1 else f"{self.shape}s"
        return " ".join(word for word in (quantity, self.colour, noun) if word)


@dataclass(frozen=True)
class Composition:
    """What a caption asks for: one or two items and, where named, a direction.

    `direction` is a key of DIRECTIONS or "": of the first item from the second one or, with a single item,
    from the image's centre. Items name every object of the image; further objects are wrong.
    """

    category: str
    items: tuple[Item, ...]
    direction: str = ""

    @property
    def count(self) -> int:
        """Number of objects in the image, 1 to 3."""
        return sum(item.count for item in self.items)


def caption(composition: Composition) -> str:
    """The caption of a composition; the inverse of `parse`."""
    texts = [str(item) for item in composition.items]
    if len(texts) == 1:
        return f"{texts[0]} {_PLACES[composition.direction]}" if composition.direction else texts[0]
    return f" {_RELATIONS.get(composition.direction, 'and')} ".join(texts)


def meaning(composition: Composition) -> str:
    """A key that is equal for compositions that ask for the same images, whatever their word order."""
    items, direction = composition.items, composition.direction
    if len(items) == 2 and items[0] > items[1]:
        items, direction = items[::-1], OPPOSITE.get(direction, "")
    return caption(Composition(composition.category, items, direction))


def _enumerate() -> Iterator[Composition]:
    for shape in SHAPES:
        yield Composition("one object", (Item(shape),))
        for direction in DIRECTIONS:
            # Three bare nouns cannot be split: the place in the image gives enough compositions.
            yield Composition("one object", (Item(shape),), direction)
    for shape, colour in product(SHAPES, COLOURS):
        yield Composition("colors", (Item(shape, colour),))
        for count in COUNTS:
            yield Composition("counting", (Item(shape, colour, count),))
    for first, second in permutations(SHAPES, 2):
        for colour in ("", *COLOURS):
            pair = (Item(first, colour), Item(second))
            yield Composition("two objects", pair)
            for direction in DIRECTIONS:
                yield Composition("position", pair, direction)
        for colours in permutations(COLOURS, 2):
            yield Composition("color attribution", (Item(first, colours[0]), Item(second, colours[1])))


def attribute_pairs(composition: Composition) -> set[tuple[object, object]]:
    """Every two of count, colour and shape that an item names together, such as ("three", "red")."""
    named = [(COUNTS.get(item.count, ""), item.colour, item.shape) for item in composition.items]
    return {pair for parts in named for pair in combinations(filter(None, parts), 2)}


def _unseen() -> dict[str, str]:
    """The split of each meaning that is not for training: in every category those with the lowest hashes.

    "unused" where an item joins two attributes that no training caption joins (three of red): nothing to compose.
    """
    found: dict[str, str] = {}
    for category in CATEGORIES:
        keys = {meaning(c) for c in COMPOSITIONS.values() if c.category == category}
        by_hash = iter(sorted(keys, key=lambda key: hashlib.sha256(f"{_SALT}/{key}".encode()).hexdigest()))
        for split, (share, minimum) in SHARES_UNSEEN.items():
            found |= dict.fromkeys(islice(by_hash, max(minimum, round(share * len(keys)))), split)
    known = set().union(*(attribute_pairs(c) for c in COMPOSITIONS.values() if meaning(c) not in found))
    strange = {meaning(c) for c in COMPOSITIONS.values() if not attribute_pairs(c) <= known}
    return found | dict.fromkeys(strange, "unused")


# The salt was chosen, before anything was trained, so that colours, shapes and directions are spread evenly over the
# splits and every word of a category stays in that category's training captions.
_SALT = "shapes-3051"
COMPOSITIONS: dict[str, Composition] = {caption(c): c for c in _enumerate()}
VOCABULARY: tuple[str, ...] = tuple(sorted({word for text in COMPOSITIONS for word in text.split()}))
_UNSEEN = _unseen()


def parse_caption(text: str) -> Composition:
    """The composition of a caption.

    Raises RankEError when `text` is not a caption of this world (the set is closed).
    """
    if text in COMPOSITIONS:
        return COMPOSITIONS[text]
    unknown = [word for word in text.split() if word not in VOCABULARY]
    reason = f"unknown word {unknown[0]!r}" if unknown else "its words are known but not in this order"
    raise RankEError(
        f"caption {text!r}: {reason}; use a caption of rank_e.shapes.captions.COMPOSITIONS, "
        'for example "a red circle" or "a circle left of a square"'
    )


def split_of(composition: Composition) -> str:
    """Which of "train", "validation", "held_out" and "unused": the same one for all compositions of one meaning."""
    return _UNSEEN.get(meaning(composition), "train")
