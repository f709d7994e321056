"""Closed English lists for edits of texts: words that exclude each other, words that do not, and words of one meaning.

Small on purpose. A word that stands in no list is left alone, so what is missing costs edits, not their truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written with spaces between them."""
    return frozenset(text.split())


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _groups(text: str) -> list[frozenset[str]]:
    return [frozenset(line.split()) for line in text.strip().splitlines()]


def _near(groups: Iterable[frozenset[str]]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for group in groups:
        for word in group:
            found[word] = found.get(word, frozenset()) | group
    return found


# What an edit may put in: of two of a list no thing is both, unless they are in one line of `_NEAR`.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "colour": _words("red green blue yellow orange purple pink brown black white grey"),
    "material": _words("wooden metal plastic glass leather brick stone paper"),
    "action": _words("sitting standing lying walking running jumping flying swimming sleeping climbing"),
}
_FURTHER: Mapping[str, str] = {
    "colour": "gray violet beige tan gold golden silver cyan magenta turquoise maroon navy teal cream crimson scarlet "
    "blond blonde",
    "material": "wood metallic steel iron concrete cardboard ceramic",
    "action": "riding crouching kneeling resting strolling jogging racing leaping napping floating",
}
_NEAR = _near(
    _groups(
        """
        grey gray silver
        purple violet magenta
        brown tan beige gold golden
        beige cream white blond blonde
        yellow gold golden cream blond blonde orange
        blue navy cyan turquoise teal
        green teal turquoise cyan
        red maroon crimson scarlet pink magenta orange
        brown maroon
        grey gray black
        white silver grey gray
        wooden wood paper cardboard
        metal metallic steel iron
        stone brick concrete ceramic
        glass ceramic plastic
        sitting riding resting crouching kneeling
        lying resting sleeping napping floating
        walking strolling standing climbing
        running jogging racing jumping leaping
        flying floating jumping leaping
        swimming floating
        """
    )
)
# Of sizes and states the opposites: two of a list are often true of one thing ("long", "thin").
OPPOSITES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "size": {
        "small": ("large",),
        "tiny": ("huge",),
        "little": ("big",),
        "large": ("small",),
        "big": ("small",),
        "huge": ("tiny",),
        "giant": ("tiny",),
        "medium": ("small", "large"),
        "tall": ("short",),
        "short": ("tall",),
        "long": ("short",),
        "wide": ("narrow",),
        "narrow": ("wide",),
        "thick": ("thin",),
        "thin": ("thick",),
    },
    "state": {
        "open": ("closed",),
        "closed": ("open",),
        "full": ("empty",),
        "empty": ("full",),
        "wet": ("dry",),
        "dry": ("wet",),
        "clean": ("dirty",),
        "dirty": ("clean",),
        "old": ("new",),
        "new": ("old",),
        "young": ("old",),
        "sunny": ("rainy",),
        "rainy": ("sunny",),
        "dark": ("bright",),
        "bright": ("dark",),
        "happy": ("sad",),
        "sad": ("happy",),
    },
}
# Of what "short" is the opposite of "long", and "old" that of "young".
LONG_THINGS = word_set("hair sleeve tail dress skirt pants trousers rope beard leg neck stick hose")
LIVING = word_set("man woman person people boy girl lady couple dog cat horse elephant")
_SIZE_ORDER = {"tiny": 0, "small": 1, "medium": 2, "large": 3, "huge": 4}

# Nouns of a line are of one kind, and no thing is two of them.
OBJECTS: tuple[tuple[str, ...], ...] = tuple(
    tuple(line.split())
    for line in """
    dog cat horse cow sheep elephant bear zebra giraffe bird rabbit pig monkey duck goat lion tiger
    car truck bus motorcycle bicycle train boat airplane helicopter tractor
    chair couch bed table bench desk shelf cabinet
    apple banana orange pizza sandwich cake carrot donut burger salad strawberry
    cup bottle bowl plate fork knife spoon pan kettle vase
    hat shirt jacket dress tie scarf glove shoe sock
    laptop keyboard television phone camera clock lamp microwave oven toaster refrigerator
    frisbee kite racket football skateboard surfboard
    umbrella backpack suitcase
    tree flower rock bush
    man woman boy girl
    circle square triangle star cross ring diamond hexagon moon heart
    """.strip().splitlines()
)
# Words of one meaning, the first standing for all.
SYNONYMS: tuple[tuple[str, ...], ...] = tuple(
    tuple(line.split())
    for line in """
    couch sofa
    bicycle bike
    airplane plane aeroplane
    television tv
    refrigerator fridge
    phone cellphone smartphone
    motorcycle motorbike
    donut doughnut
    picture photo photograph image
    rock stone
    plate dish
    cup mug
    baby infant
    person human
    woman lady
    football soccer
    grey gray
    large big
    small little
    huge giant
    beneath underneath under
    above over
    beside alongside
    near nearby
    """.strip().splitlines()
)
# Nouns that are also what stands behind them.
_IS_A: Mapping[str, str] = {
    **dict.fromkeys(_words("man woman boy girl baby child kid player skier surfer rider"), "person"),
    **dict.fromkeys(_words("duck parrot seagull pigeon eagle"), "bird"),
    "puppy": "dog",
    "kitten": "cat",
    "pony": "horse",
    "van": "car",
    "taxi": "car",
    "ship": "boat",
    "calf": "cow",
    "lamb": "sheep",
}
# Nouns by which one thing may well be called, though they are of one list.
_LIKE = _near(
    _groups(
        """
        table desk bench
        chair bench couch
        shelf cabinet
        man boy
        woman girl
        tree bush flower
        jacket shirt dress
        fork spoon
        laptop keyboard
        microwave oven toaster
        dog puppy
        plate bowl
        """
    )
)
IRREGULAR: Mapping[str, str] = {
    **{"man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese"},
    **{"sheep": "sheep", "fish": "fish", "deer": "deer", "foot": "feet", "tooth": "teeth", "broccoli": "broccoli"},
    **{"knife": "knives", "shelf": "shelves", "loaf": "loaves", "leaf": "leaves", "calf": "calves", "wolf": "wolves"},
}
_SINGULAR = {plural: one for one, plural in IRREGULAR.items()}
_CANONICAL = {word: group[0] for group in SYNONYMS for word in group}
# "rock" and "stone" are one thing, and stone is a material: as an attribute it is itself.
ATTRIBUTES: Mapping[str, str] = {
    **{word: kind for kind, words in CHOICES.items() for word in words},
    **{word: kind for kind, words in _FURTHER.items() for word in words.split()},
    **{word: kind for kind, words in OPPOSITES.items() for word in words},
}
_GROUP_OF = {word: group for group in OBJECTS for word in group}
NOUNS = frozenset(_GROUP_OF) | frozenset(_IS_A) | frozenset(_IS_A.values())


def plural(noun: str) -> str:
    """The plural of a lower-case English noun."""
    for one, many in IRREGULAR.items():
        if noun == one or (noun.endswith(one) and one in ("man", "woman")):
            return noun.removesuffix(one) + many
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def singular(word: str) -> str:
    """The singular of a lower-case English noun; what has no ending of a plural comes back as it is."""
    if word in _SINGULAR:
        return _SINGULAR[word]
    if (
        word in NOUNS
        or word in _CANONICAL
        or len(word) < 4
        or not word.endswith("s")
        or word.endswith(("ss", "us", "is"))
    ):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "zes", "ches", "shes", "buses")):
        return word[:-2]
    return word[:-1]


def is_plural(word: str) -> bool:
    """Whether a lower-case noun has the form of a plural."""
    return word in _SINGULAR or singular(word) != word


def canonical(word: str) -> str:
    """One form for a lower-case noun or attribute, its plural, and its synonyms."""
    if word in ATTRIBUTES and word != "orange":
        return _CANONICAL.get(word, word) if ATTRIBUTES[word] != "material" else word
    one = singular(word)
    return _CANONICAL.get(one, one)


def is_noun(word: str) -> bool:
    """Whether a lower-case word, or its singular, is a noun of these lists."""
    return canonical(word) in NOUNS and (word == "orange" or word not in ATTRIBUTES)


def same_kind(noun: str) -> tuple[str, ...]:
    """Other nouns, in the singular, that a thing of this name is not."""
    one = canonical(noun)
    return tuple(other for other in _GROUP_OF.get(one, ()) if not (one == other or related(one, other)))


def related(one: str, other: str) -> bool:
    """Whether a thing may be called by both of two canonical nouns."""
    return other in _LIKE.get(one, ()) or is_a(one, other) or is_a(other, one)


def is_a(noun: str, kind: str) -> bool:
    """Whether every thing of the first canonical name is also one of the second."""
    return noun == kind or _IS_A.get(noun) == kind


def compatible(one: str, other: str, kind: str) -> bool | None:
    """Whether a thing may have both attributes: True for one and the same, None where it is a matter of taste.

    Args:
        one: A canonical attribute.
        other: Another of the same kind.
        kind: Of both.
    """
    if one == other:
        return True
    if kind in OPPOSITES:
        if one in _SIZE_ORDER and other in _SIZE_ORDER:
            return (
                None if abs(_SIZE_ORDER[one] - _SIZE_ORDER[other]) == 1 and {one, other} & {"tiny", "huge"} else False
            )
        return False if other in OPPOSITES[kind].get(one, ()) else None
    return None if other in _NEAR.get(one, ()) else False


def alternatives(word: str, kind: str, noun: str) -> tuple[str, ...]:
    """Attributes that exclude a given one.

    Args:
        word: Lower case, of `ATTRIBUTES`.
        kind: Of it.
        noun: What it is said of, in the singular, or "".
    """
    if kind in CHOICES:
        return tuple(other for other in CHOICES[kind] if other != word and other not in _NEAR.get(word, ()))
    if word == "short" and noun in LONG_THINGS:
        return ("long",)
    if word == "old" and noun in LIVING:
        return ("young",)
    return OPPOSITES[kind][word]
