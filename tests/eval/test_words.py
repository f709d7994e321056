"""Words and singulars: every word of the real lists, regular and irregular, and what must not become another word."""

from __future__ import annotations

import json

import pytest

from mllm_align_eval.benchmarks.objects import read_vocabulary
from mllm_align_eval.words import singular, tokens

IRREGULAR = {
    "ox": "oxen",
    "goose": "geese",
    "mouse": "mice",
    "knife": "knives",
    "pocketknife": "pocketknives",
    "calf": "calves",
    "foot": "feet",
    "shelf": "shelves",
    "bookshelf": "bookshelves",
    "mousepad": "mousepads",
    "scarf": "scarves",
}
# Words of the lists that have no plural of their own, or are one.
NO_PLURAL = {"people", "children", "oxen", "cattle", "skis", "scissors", "knive", "television"}


def plural(word: str) -> str:
    """The plural as a schoolbook has it."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("man", "woman")) and word not in ("ottoman",):
        return word[:-3] + "men"
    if word.endswith("child"):
        return word + "ren"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def test_the_plural_of_every_synonym(data_dir):
    vocabulary = read_vocabulary(data_dir / "chair" / "synonyms.txt", "")
    names = [name for name in vocabulary.synonyms if name == name.strip() and " " not in name]
    assert len(names) > 350
    for name in names:
        assert singular(name, vocabulary.known) == name
        if name not in NO_PLURAL:
            one = singular(plural(name), vocabulary.known)
            # "children" and "doggies" have a line of their own or of another spelling, in the same class.
            assert vocabulary.synonyms[one] == vocabulary.synonyms[name], name


def test_the_plural_of_every_class_is_a_mention_of_it(data_dir):
    vocabulary = read_vocabulary(data_dir / "chair" / "synonyms.txt", "")
    for name in set(vocabulary.synonyms.values()):
        *first, last = name.split()
        several = " ".join([*first, plural(last)])
        for text in (f"A {name}.", f"Two {several}, {name if last in NO_PLURAL else several}"):
            assert {mention.category for mention in vocabulary.mentions(text)} == {name}, text


@pytest.mark.parametrize(
    ("several", "one"),
    [
        ("buses", "bus"),
        ("busses", "bus"),
        ("ties", "tie"),
        ("canoes", "canoe"),
        ("magpies", "magpie"),
        ("vases", "vase"),
        ("buffaloes", "buffalo"),
        ("buffalos", "buffalo"),
        ("puppies", "puppy"),
        ("grandchildren", "grandchild"),
        ("policemen", "policeman"),
        ("women", "woman"),
        ("glasses", "glass"),
    ],
)
def test_plurals_that_need_the_list(data_dir, several, one):
    assert singular(several, read_vocabulary(data_dir / "chair" / "synonyms.txt", "").known) == one


def test_the_plural_of_every_association_word_of_amber(data_dir):
    words = json.loads((data_dir / "amber" / "relation.json").read_text())
    known = set(words).union(*words.values())
    for word in known - {"people", "leave", "scissors", "child"}:
        assert singular(word, known) == word
        assert singular(plural(word), known) == word, word
    # Leaves are never the "leave" of that list.
    assert singular("leaves", known) == "leaves"


def test_other_words_stay_what_they_are():
    known = {"bus", "seat", "ski", "train", "cup", "ox"}
    for word in ("seated", "skiing", "this", "us", "was", "bu", "trained", "boxes", "class", "", "s"):
        assert singular(word, known) == word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's bowl, the dogs' bowls.", ["A", "dog", "'s", "bowl", "the", "dogs", "bowls"]),
        ("It isn't (really) a bus-stop!", ["It", "is", "n't", "really", "a", "bus-stop"]),
        ("**Chairs**:\n- two\u2014or \u201cthree\u201d", ["Chairs", "two", "or", "three"]),
        ("chair/table end.Next", ["chair/table", "end.Next"]),
        ("", []),
        ("...", []),
    ],
)
def test_tokens(text, words):
    assert [token for token in tokens(text) if token != "-"] == words
