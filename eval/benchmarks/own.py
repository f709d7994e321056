"""A benchmark of the user's own: a .jsonl, .tsv or .csv file of image, question and answer, one row each.

Columns: `image` (a file's name, or base64; or `image_path`), `question` (or `prompt`), `answer`; and where wanted
`split`, `id` (or `index`), `cluster` (what rows that belong together share; the picture by default), `hint` (text
before the question) and `choices` (a list) or `A`, `B`, `C`, ... as VLMEvalKit's tables have them.

What the answer holds decides how a row is scored: with choices, the letter or the wording of one of them; else yes or
no; else a short answer, or a list of those that are right. Choices are listed under the question, with a line that
asks for the letter; every other question is asked as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase as LETTERS

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.own_rows import OwnRow, own_pictures, own_rows
from mllm_align_eval.items import YES_NO, Answer, Item, Picture
from mllm_align_eval.metrics import Measures, by_kind, by_split, mean
from mllm_align_eval.text_metrics import vqa_normalise

ORIGIN = "a file of your own (.jsonl, .tsv or .csv with the columns image, question and answer)"
FILES = ("*.jsonl", "*.tsv", "*.csv")
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def own_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of all tables in a folder; of several, each file is a split where no column says otherwise.

    Args:
        folder: Holds the tables.
        pictures: Where the pictures' files are; without a folder, beside their table.

    Raises:
        FileNotFoundError: If there is no table, or a picture is missing.
        ValueError: Naming the line and the column that cannot be used.
    """
    files = sorted(path for pattern in FILES for path in folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no .jsonl, .tsv or .csv file in {folder}: put {ORIGIN} there")
    items: list[Item] = []
    shown: list[str] = []
    seen: dict[str, str] = {}
    for path in files:
        held: dict[str, Picture] = {}
        # The table may be a link to where it lies, beside its pictures.
        beside = pictures if pictures.root is not None else PictureFolder(path.resolve().parent, pictures.origin)
        name = f"own/{path.stem}" if len(files) > 1 else "own"
        for row in own_rows(path, ORIGIN):
            found, is_file = own_pictures(row, beside, held)
            item = _item(row, name, found, path.stem if len(files) > 1 else "test")
            if item.id in seen:
                raise row.error("id", f"{item.id.removeprefix(f'{name}/')!r} is that of {seen[item.id]} too")
            seen[item.id] = row.where
            items.append(item)
            shown += [picture.name for picture in found] if is_file else []
    if not items:
        raise ValueError(f"there is no question in {', '.join(map(str, files))}")
    pictures.check(shown)
    return items


def _item(row: OwnRow, name: str, pictures: tuple[Picture, ...], split: str) -> Item:
    question = row.get("question", "prompt")
    if not isinstance(question, str):
        raise row.error("question", "is no text" if question is not None else "is empty (as is prompt)")
    answers = [_written(value) for value in row.list("answer")]
    if not answers or "" in answers:
        raise row.error("answer", "is empty")
    options = _options(row)
    choices, labels, prompt = (), (), question
    if options:
        choices, labels = tuple(LETTERS[: len(options)]), tuple(options)
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(choices, options, strict=True))
        prompt = f"{question}\n{listed}{SUFFIX}"
        answers = [_letter(row, answers, options)]
    elif len(answers) == 1 and answers[0].lower() in YES_NO:
        choices, answers = YES_NO, [answers[0].lower()]
    hint = row.get("hint")
    key = row.get("id", "index")
    return Item(
        id=f"{name}/{row.number if key is None else key}",
        benchmark="own",
        split=str(row.get("split") or split),
        kind="choice" if options else "yes_no" if choices else "short",
        cluster=str(row.get("cluster") or pictures[0].name),
        prompt=f"{hint}\n{prompt}" if hint is not None else prompt,
        pictures=pictures,
        choices=choices,
        answer=answers[0] if choices else "",
        labels=labels,
        truth={"answers": tuple(answers)},
    )


def _written(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value).strip()


def _options(row: OwnRow) -> list[str]:
    """The wording of the choices; none where the row has no choices."""
    listed = [_written(value) for value in row.list("choices")]
    filled = [letter for letter in LETTERS if row.get(letter) is not None]
    if listed and filled:
        raise row.error("choices", f"is filled, and so is column {filled[0]}: give one of them")
    if filled and filled != list(LETTERS[: len(filled)]):
        raise row.error(filled[-1], "is filled, and a letter before it is not")
    options = listed or [_written(row.get(letter)) for letter in filled]
    if options and not 2 <= len(options) <= len(LETTERS):
        raise row.error("choices" if listed else "A", f"{len(options)} choices; give 2 to {len(LETTERS)}")
    return options


def _letter(row: OwnRow, answers: Sequence[str], options: Sequence[str]) -> str:
    """The letter of the right choice, from itself or from its wording."""
    said = answers[0]
    meant = {letter for letter, option in zip(LETTERS, options, strict=False) if said in (letter, option)}
    if len(answers) > 1 or len(meant) != 1:
        problem = "could be" if meant else "is none of"
        raise row.error(
            "answer",
            f"{', '.join(answers)!r} {problem} {', '.join(sorted(meant) or LETTERS[: len(options)])}; give one letter",
        )
    return meant.pop()


def own_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`own/acc`; of several splits `own/<split>/acc`, of several kinds `own/choice_acc`, `own/yes_no_acc`, ...

    A short answer is right if it is the same words as one that is given: case, punctuation, articles and whether a
    number is a word or digits do not count.
    """

    def right(item: Item) -> bool:
        answer = answers[item.id]
        return answer.right if item.is_closed else any(_same(answer.text, true) for true in item.truth["answers"])

    found = {"own/acc": mean(items, right)}
    splits, kinds = by_split(items), by_kind(items)
    if len(splits) > 1:
        found |= {f"own/{split}/acc": mean(members, right) for split, members in splits.items()}
    if len(kinds) > 1:
        found |= {f"own/{kind}_acc": mean(members, right) for kind, members in kinds.items()}
    return found


def _same(text: str, true: str) -> bool:
    said, wanted = vqa_normalise(text), vqa_normalise(true)
    # An article alone is nothing once normalised, and so is no answer.
    return said == wanted if wanted else text.strip().lower() == true.lower()


OWN = Benchmark(
    name="own",
    title="A benchmark of your own",
    origin=ORIGIN,
    image_origin="the folder that the file's column image is relative to",
    files=FILES,
    read=own_items,
    score=own_score,
    primary="own/acc",
    max_new_tokens=32,
    pictures_beside=True,
)
