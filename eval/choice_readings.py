"""How published scripts read one of several choices, written down from their behaviour.

Each rule is what the harness does, not what it should do; `answers.parse` is the rule to trust. A script that takes a
text for a letter which is no choice counts it wrong, so it is unread here. What they make of the same texts where
(a) is open and (b) is closed (- is unread, CV is CV-Bench, "lmms" its shared extractor):

| text                                | strict | S-VCO | cambrian | its CV | lmms MMVP | lmms CV | lmms | VLMEvalKit |
|-------------------------------------|--------|-------|----------|--------|-----------|---------|------|------------|
| `(a)`                               | a      | a     | a        | a      | a         | a       | -    | -          |
| `B.`                                | b      | -     | b        | b      | b         | b       | b    | b          |
| `The answer is (B).`                | b      | -     | b        | b      | b         | -       | b    | b          |
| `closed`                            | b      | -     | b        | -      | -         | -       | -    | b          |
| `Neither A nor B`                   | -      | -     | -        | -      | a         | -       | b    | -          |
| `**B**`                             | b      | -     | -        | -      | -         | -       | b    | b          |
| `(B) closed is what I see, not (A)` | b      | b     | -        | b      | b         | b       | a    | -          |
| `I see a dog, it is closed`         | b      | -     | -        | -      | a         | -       | -    | -          |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mllm_align_eval.answers import Parsed
from mllm_align_eval.items import Item
from mllm_align_eval.readings import UNREAD

_STATEMENTS = ("answer is", "answer is:", "answer:")

_AB = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    )
)

_SUBJECTS = ("answer is", "correct answer is", "best answer is", "correct option is", "best option is", "choice is")
_PHRASES = (
    *_SUBJECTS,
    "correct choice is",
    *(f"the {subject}" for subject in (*_SUBJECTS, "correct choice is")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
# lmms-eval's confidence in each way of naming a letter.
_START, _END, _PHRASE, _SUFFIXES = 10, 9, 7, {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_VERBOSE = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_TAIL = 4  # words from the end among which VLMEvalKit takes a lone letter for an answer, one more is let pass


def letters_of(item: Item) -> tuple[str, ...]:
    """The letter of each choice, "(a)" being A."""
    return tuple(choice.strip("()").upper() for choice in item.choices)


def svco_choice(text: str, item: Item) -> Parsed:
    """S-VCO's grader: the first four characters are the letter, parentheses and white space left out; "A." is not."""
    head = re.sub(r"[()\s]", "", text.strip().lower()[:4])
    return _chosen(head.upper(), item)


def cambrian_choice(text: str, item: Item) -> Parsed:
    """cambrian on MMVP: what follows the last "answer is", or all, is the letter or the option's text."""
    said = after_statement(text).rstrip(".:,").lstrip("(").rstrip(")")
    found = [
        choice
        for choice, letter, label in zip(item.choices, letters_of(item), item.labels, strict=True)
        if said in (letter.lower(), label.lower())
    ]
    # The script looks for the true one alone, so where two options are worded alike the true one is taken.
    return Parsed(item.answer if item.answer in found else found[0], "answered") if found else UNREAD


def cambrian_first_letter(text: str, item: Item) -> Parsed:
    """cambrian on CV-Bench, by its authors: the first character after the last "answer is", or of all."""
    said = after_statement(text).rstrip(".:,").lstrip("(").rstrip(")")
    return _chosen(said[:1].upper(), item)


def after_statement(text: str) -> str:
    """What cambrian reads: lower case, after the last "answer is", "answer is:" and "answer:"."""
    said = text.lower().strip()
    for statement in _STATEMENTS:
        said = said.split(statement)[-1]
    return said.strip()


def lmms_mmvp(text: str, item: Item) -> Parsed:
    """lmms-eval on MMVP: five patterns in turn, whatever the case, so that an article is an A ("I see a dog")."""
    text = text.strip()
    for pattern in _AB:
        match = pattern.search(text)
        if match:
            return _chosen(match[1].upper(), item)
    return _chosen(text[:1].upper() if text[:1] in ("A", "B", "a", "b") else "", item)


def lmms_first_letter(text: str, item: Item) -> Parsed:
    """lmms-eval on CV-Bench: the first letter, whatever it belongs to: "The answer is (B)" is a T, "closed" a C."""
    match = re.match(r"[(\s]*([A-Z])", text.strip(), re.IGNORECASE)
    return _chosen(match[1].upper(), item) if match else UNREAD


def lmms_scienceqa(text: str, item: Item) -> Parsed:
    """lmms-eval on ScienceQA: the letter in either case, or a capital with a period at the start."""
    text = text.strip()
    if len(text) >= 2 and text[0].isupper() and text[1] == ".":
        return _chosen(text[0], item)
    return _chosen(text.upper(), item)


def llava_scienceqa(text: str, item: Item) -> Parsed:
    """LLaVA's script for ScienceQA: a capital alone, before ". ", or in a single "The answer is X" that goes on."""
    if text in ("A", "B", "C", "D", "E"):
        return _chosen(text, item)
    if re.match(r"[A-E]\. ", text):
        return _chosen(text[0], item)
    stated = re.findall(r"The answer is ([A-Z]).", text)
    return _chosen(stated[0], item) if len(stated) == 1 else UNREAD


def lmms_choice(text: str, item: Item) -> Parsed:
    """lmms-eval's shared extractor, among the item's letters."""
    return _chosen(lmms_letter(text, letters_of(item)), item)


def lmms_letter(text: str, letters: Sequence[str]) -> str:
    """The letter that lmms-eval's shared extractor finds, or "".

    Every way of naming a letter is looked for; the most trusted one counts, and of it the one nearest to the end. Only
    capitals are seen. If there is none, the last letter of any word that is one of them.
    """
    if not text.strip():
        return ""
    core = text.strip()
    for mark in ",.!?;:'\"":
        core = core.strip(mark)
    padded, core = f" {core} ", core.strip()
    named = list(_named(padded, core, letters))
    if not named:
        named = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(named, key=lambda found: found[:2])[2] if named else ""


def vlmevalkit_choice(text: str, item: Item) -> Parsed:
    """VLMEvalKit without a judge: the only letter that stands alone, else the only option whose text occurs.

    The letter must be a capital and, of a long answer, near its end; punctuation is left out. Option texts count in
    answers up to twice as long as all options. With a judge that fails, the harness draws a letter at random instead.
    """
    return _infer(text, item, early=False)


def early_vlmevalkit_choice(text: str, item: Item) -> Parsed:
    """VLMEvalKit as it was when MMVM's authors took it: a letter counts anywhere, an option's text in any answer."""
    return _infer(text, item, early=True)


def _infer(text: str, item: Item, early: bool) -> Parsed:
    if any(refusal in text for refusal in _REFUSALS):
        return UNREAD
    letters = letters_of(item)
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    alone = [letter for letter in letters if letter in words]
    if len(alone) == 1 and (early or words.index(alone[0]) >= len(words) - _TAIL):
        return _chosen(alone[0], item)
    if not alone and "Z" in words:
        return UNREAD
    stated = None if early else _VERBOSE.search(text)
    if stated and stated[1].upper() in letters:
        return _chosen(stated[1].upper(), item)
    if not early and len(text) > 2 * sum(map(len, item.labels)):
        return UNREAD
    worded = [choice for choice, label in zip(item.choices, item.labels, strict=True) if label.lower() in text.lower()]
    return Parsed(worded[0], "answered") if len(worded) == 1 else UNREAD


def _named(padded: str, core: str, letters: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Trust, position and letter of each way in which lmms-eval sees a letter named."""
    lowered = padded.lower()
    ends = [lowered.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lowered]
    for letter in letters:
        for form, trust in _SUFFIXES.items():
            position = padded.rfind(form.format(letter))
            if position >= 0:
                yield trust, position, letter
        yield from ((_PHRASE, padded.find(letter, end), letter) for end in ends if letter in padded[end:])
        if core.startswith(letter) and not core[1:2].isalpha():
            yield _START, 0, letter
        if core.endswith(letter) and not core[-2:-1].isalpha():
            yield _END, len(padded), letter


def _chosen(letter: str, item: Item) -> Parsed:
    """The choice of a letter, if it is one."""
    letters = letters_of(item)
    return Parsed(item.choices[letters.index(letter)], "answered") if letter in letters else UNREAD
