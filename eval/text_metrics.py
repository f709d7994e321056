"""How near a text is to the answers that people gave: edit distance, ANLS, VQA accuracy.

Where published scripts differ there is a function for each, so that a published column can be had again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUM_VQA_ANSWERS = 10

_ARTICLES = ("a", "an", "the")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
# Every way to leave out exactly one apostrophe is mended; no more, so "couldntve" stays as it is.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the published table
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_ALONE = re.compile(r"(?<!\d)\.(?!\d)")
# The scripts pass re.UNICODE where re.sub takes its count: that many periods go, and no more.
_MOST_PERIODS = int(re.UNICODE)


def levenshtein(first: str, second: str) -> int:
    """The fewest insertions, deletions and substitutions of characters that make one text the other."""
    if len(first) > len(second):
        first, second = second, first
    row = list(range(len(first) + 1))
    for index, letter in enumerate(second, start=1):
        above = row
        row = [index]
        for place, other in enumerate(first):
            row.append(min(above[place] + (letter != other), above[place + 1] + 1, row[place] + 1))
    return row[-1]


def anls(text: str, answers: Iterable[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question (Biten et al. 2019, https://arxiv.org/abs/1905.13648).

    The best over the answers of 1 - NL if NL < `threshold`, else 0, with NL the distance over the length of the longer
    text. Case does not count, white space does, but for that around the texts, which models add. 0 without answers.
    """
    said = text.strip().lower()
    return max((_similarity(said, answer.strip().lower(), threshold) for answer in answers), default=0.0)


def _similarity(said: str, answer: str, threshold: float) -> float:
    length = max(len(said), len(answer))
    # Texts that differ in length by this much are at least as far apart: no need to align them.
    if length and abs(len(said) - len(answer)) / length >= threshold:
        return 0.0
    far = levenshtein(said, answer) / length if length else 0.0
    return 1 - far if far < threshold else 0.0


def anls_rrc(text: str, answers: Iterable[str], threshold: float = 0.5) -> float:
    """ANLS as the script of the Robust Reading Competition has it, and after it Qwen-VL, lmms-eval and VLMEvalKit.

    It differs from the paper in that a text at exactly half the distance counts 0.5, and in that the distance is
    between texts with single spaces while the length is that of the texts as they came: padding makes any text right.
    """
    return max((_rrc_similarity(text, answer, threshold) for answer in answers), default=0.0)


def _rrc_similarity(text: str, answer: str, threshold: float) -> float:
    said, true = (" ".join(one.strip().lower().split()) for one in (text, answer))
    # Upper case may be longer: the script measures that.
    length = max(len(answer.upper()), len(text.upper()))
    if length and 1 - abs(len(said) - len(true)) / length < threshold:
        return 0.0
    similarity = 1 - (levenshtein(said, true) / length if length else 0.0)
    return similarity if similarity >= threshold else 0.0


def vqa_normalise(text: str) -> str:
    """A text as the evaluation of TextVQA compares it (MMF's; lmms-eval has the same).

    Lower case; commas, question marks and most punctuation gone or a space, periods gone unless a digit follows;
    number words up to ten as digits; no articles; contractions with their apostrophe; "'s" stands apart.
    """
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    plain = lowered.replace("\n", " ").replace("\t", " ").strip()
    return _plain_words(_PERIOD.sub("", _without_marks(plain), count=_MOST_PERIODS))


def vqa_normalise_vlmevalkit(text: str) -> str:
    """A text as VLMEvalKit compares it: as `vqa_normalise`, but "'s" stays, and so does a period after a digit."""
    plain = text.replace("\n", " ").replace("\t", " ").strip()
    return _plain_words(_PERIOD_ALONE.sub("", _without_marks(plain), count=_MOST_PERIODS))


def _without_marks(text: str) -> str:
    """Punctuation left out where it stands beside a space (all of it where a number has a comma), else a space."""
    grouped = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or grouped else " ")
    return found


def _plain_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """The share of people who agree, three being enough: the mean over the answers of min(matching others / 3, 1).

    Each answer is left out once (https://visualqa.org/evaluation.html). Texts are compared as they are: normalise
    them before. 0 without answers.
    """
    same = sum(answer == said for answer in answers)
    scores = [min((same - (answer == said)) / 3, 1.0) for answer in answers]
    return sum(scores) / len(scores) if scores else 0.0
