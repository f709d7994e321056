"""Hard negatives of rows: what a loop in float64 finds, whatever happens to the job; nothing true, nothing lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from mllm_align.data.corrupt.drawn import seed_of
from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.dual_embedder import DualEmbedder
from mllm_align.data.mine.hard_negatives import GivenVectors, MiningOptions, mine_negatives, text_column
from mllm_align.data.mine.negative_choice import FILTERS, NegativeChoice
from runs import assert_survives_a_kill, picture, start_ranks, wait_for_ranks
from tiny_duals import captioned, save_dual

COUNT, DIM = 48, 6


def captions_of(number: int) -> list[str]:
    """One to three texts; text 5 is that of five rows."""
    return [f"text {number}", "text 5" if number % 9 == 4 else f"other {number // 2}", f"third {number}"][
        : 1 + number % 3
    ]


def written(folder: Path) -> list[dict[str, Any]]:
    """Rows whose pictures are files; 40 to 43 show what 0 to 3 show, in files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(COUNT):
        path = folder / f"{number}.png"
        if not path.exists():
            picture(number - 40 if 40 <= number < 44 else number).save(path)
        rows.append({"id": str(number), "image": str(path), "caption": captions_of(number)})
    rows[7]["positives"] = ["text 8", "never said"]
    return rows


def given(rows: list[dict[str, Any]]) -> GivenVectors:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(rows), DIM))
    if len(rows) == COUNT:
        images[20] = images[21] + 1e-3 * rng.normal(size=DIM)  # other pixels, taken for the same picture
    spoken = [(number, text) for number, row in enumerate(rows) for text in row["caption"]]
    known: dict[str, np.ndarray] = {}
    for number, text in spoken:
        known.setdefault(text, images[number] + 1.2 * rng.normal(size=DIM))
    if len(rows) == COUNT:
        known["text 30"] = known["text 31"]  # a tie
    texts = np.stack([known[text] for _, text in spoken])
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts)]
    return GivenVectors(unit[0].astype(np.float32), unit[1].astype(np.float32), "test vectors")


class Loop:
    """The definition, one pair at a time."""

    def __init__(self, rows: list[dict[str, Any]], vectors: GivenVectors, options: MiningOptions) -> None:
        self.rows, self.choice = rows, options.choice
        self.keys = [image_key(Path(row["image"]).read_bytes()) for row in rows]
        first = {key: number for number, key in reversed(list(enumerate(self.keys)))}
        self.image = [vectors.images[first[key]].astype(np.float64) for key in self.keys]
        self.texts: dict[str, np.ndarray] = {}
        flat = [text for row in rows for text in row["caption"]]
        for text, vector in zip(flat, vectors.texts.astype(np.float64), strict=True):
            self.texts.setdefault(text, vector)
        self.most = max(len(self.own(number)) for number in range(len(rows)))
        threshold = options.same_picture
        self.near = [
            {
                n
                for n in range(len(rows))
                if self.keys[n] != self.keys[m] and threshold is not None
                and float((self.image[n] * self.image[m]).sum()) >= threshold
            }
            for m in range(len(rows))
        ]  # fmt: skip
        self.dropped: Counter[str] = Counter()

    def own(self, number: int) -> list[str]:
        found = [t for n, row in enumerate(self.rows) if self.keys[n] == self.keys[number] for t in row["caption"]]
        return list(dict.fromkeys(found))

    def __call__(self, number: int, count: bool) -> list[tuple[str, float]]:
        own = self.own(number)
        same = [n for n in range(len(self.rows)) if self.keys[n] == self.keys[number]]
        known = {*own, *(text for n in same for text in self.rows[n].get("positives", ()) if text in self.texts)}
        alike = {text for n in self.near[number] for text in self.own(n)} - known
        scores = {text: float((vector * self.image[number]).sum()) for text, vector in self.texts.items()}
        order = sorted(scores, key=lambda text: (-scores[text], list(scores).index(text)))
        choice, positive = self.choice, min(scores[text] for text in own)
        reach = choice.reach(self.most)
        left = []
        for text in order[: reach + self.most + len((known | alike) - set(own))]:
            score = scores[text]
            failed = {
                "known positive": text in known,
                "same picture": text in alike,
                "absolute margin": choice.absolute_margin is not None and score + choice.absolute_margin > positive,
                "relative margin": choice.relative_margin is not None
                and score > positive - abs(positive) * choice.relative_margin,
                "max score": choice.max_score is not None and score > choice.max_score,
                "min score": choice.min_score is not None and score < choice.min_score,
            }
            name = next((name for name, bad in failed.items() if bad), None)
            self.dropped[name or ""] += count
            if name is None:
                left.append(text)
        left = left[:reach][choice.range_min :]
        if choice.sampling == "random" and len(left) > choice.per_row:
            drawn = Random(seed_of(choice.seed, self.keys[number])).sample(range(len(left)), choice.per_row)
            left = [left[place] for place in sorted(drawn)]
        return [(text, scores[text]) for text in left[: choice.per_row]]


@pytest.mark.parametrize(
    ("choice", "same_picture"),
    [
        ({}, 0.99),
        ({"range_min": 2, "per_row": 2}, None),
        ({"range_max": 9, "sampling": "random", "seed": 4}, 0.9),
        ({"absolute_margin": 0.1, "min_score": 0.0}, 0.99),
        ({"relative_margin": 0.2, "max_score": 0.8}, 0.99),
        ({"relative_margin": 0.05, "absolute_margin": 0.3, "max_score": 0.6, "min_score": -0.2}, 0.5),
    ],
)
def test_they_are_what_a_loop_over_all_pairs_finds(
    choice: dict[str, Any], same_picture: float | None, tmp_path: Path
) -> None:
    rows = written(tmp_path / "pictures")
    options = MiningOptions(choice=NegativeChoice(**choice), same_picture=same_picture)
    report = mine_negatives(rows, tmp_path / "out.jsonl", given(rows), options, progress=False, block_size=7)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    loop = Loop(rows, given(rows), options)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    seen: set[str] = set()
    for number, row in enumerate(found):
        expected = loop(number, count=loop.keys[number] not in seen)
        seen.add(loop.keys[number])
        assert row["negatives"] == [text for text, _ in expected], number
        np.testing.assert_allclose(row["negatives_scores"], [score for _, score in expected], rtol=0, atol=1e-12)
        assert row["negatives_by"] == ["test vectors"] * len(expected)
        assert not set(row["negatives"]) & {*loop.own(number), *rows[number].get("positives", ())}
    assert report["dropped"] == {name: loop.dropped[name] for name in FILTERS}
    assert report["without"] == sum(not row["negatives"] for row in found)
    assert (report["kept"], report["pictures"], report["texts"]) == (COUNT, COUNT - 4, len(loop.texts))
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["options"]["choice"] == asdict(options.choice)


def test_long_texts_are_positives_and_no_negatives(tmp_path: Path) -> None:
    """As if they were not among the candidates: the nearest are as many as ever."""
    rows = written(tmp_path / "pictures")
    vectors = given(rows)
    for number, row in enumerate(rows):
        row["caption"] = [f"{text}, which is long" if number % 4 else text for text in row["caption"]]
    options = MiningOptions(choice=NegativeChoice(absolute_margin=0.1, per_row=4), max_words=2, same_picture=None)
    report = mine_negatives(rows, tmp_path / "out.jsonl", vectors, options, progress=False, block_size=7)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    loop = Loop(rows, vectors, options)
    assert report["long_texts"] == sum(len(text.split()) > 2 for text in loop.texts) > report["texts"] // 2
    whole = 0
    for number, row in enumerate(found):
        scores = {text: float((vector * loop.image[number]).sum()) for text, vector in loop.texts.items()}
        own = {*loop.own(number), *(row.get("positives") or ())}
        least = min(scores[text] for text in loop.own(number))
        fit = [t for t in scores if len(t.split()) <= 2 and t not in own and scores[t] + 0.1 <= least]
        assert row["negatives"] == sorted(fit, key=lambda text: -scores[text])[:4], number
        whole += len(row["negatives"]) == 4
    assert whole > COUNT // 4
    with pytest.raises(DataError, match=r"every text has more than 1 words: raise max_words \(--max-words\)"):
        mine_negatives(rows, tmp_path / "none.jsonl", vectors, MiningOptions(max_words=1), progress=False)
    with pytest.raises(ValueError, match="max_words must be at least 1, not 0"):
        MiningOptions(max_words=0)


def test_pictures_that_a_text_is_false_of(tmp_path: Path) -> None:
    rows = written(tmp_path / "pictures")
    rows[3]["contrast_image"] = rows[9]["image"]
    vectors = given(rows)
    options = MiningOptions(contrast=True, choice=NegativeChoice(absolute_margin=0.0, range_max=COUNT))
    report = mine_negatives(rows, tmp_path / "out.jsonl", vectors, options, progress=False)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    loop = Loop(rows, vectors, options)
    given_away = 0
    for number, row in enumerate(found):
        text = rows[number]["caption"][0]
        true = {n for n in range(COUNT) if text in loop.own(n) or text in rows[n].get("positives", ())}
        away = true | {n for m in true if text in loop.own(m) for n in loop.near[m]}
        scores = {n: float((loop.image[n] * loop.texts[text]).sum()) for n in range(COUNT)}
        positive = min(scores[n] for n in range(COUNT) if text in loop.own(n))
        fit = [n for n in scores if n not in away and scores[n] <= positive]
        if number == 3:
            assert row["contrast_image"] == "pictures/9.png"
            assert row["contrast_image_by"] is None
        elif fit:
            best = max(fit, key=lambda n: (scores[n], -n))
            assert row["contrast_image"] == f"pictures/{best}.png", number
            assert row["contrast_image_score"] == pytest.approx(scores[best], abs=1e-12)
            given_away += 1
        else:
            assert row["contrast_image"] is None
    assert report["contrasts"] == given_away > COUNT // 2
    assert report["dropped_contrasts"]["known positive"] >= len(loop.texts)


def test_what_rows_hold_already_stays(tmp_path: Path) -> None:
    rows = written(tmp_path / "pictures")[:20]
    vectors = given(rows)
    fresh = mine_negatives(rows, tmp_path / "fresh.jsonl", vectors, progress=False)
    mined = [json.loads(line) for line in (tmp_path / "fresh.jsonl").read_text().splitlines()]
    assert fresh["negatives"] == sum(len(row["negatives"]) for row in mined) == 60
    again = mine_negatives(load_rows(tmp_path / "fresh.jsonl"), tmp_path / "again.jsonl", vectors, progress=False)
    assert (again["negatives"], again["without"]) == (0, 0)  # what an earlier run has found is not new
    kept = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [row["negatives"] for row in kept] == [row["negatives"] for row in mined]
    rows[0] |= {"negatives": ["a drawing", mined[0]["negatives"][1]], "note": 7}
    rows[1] |= {"negatives": ["b"], "negatives_scores": [0.5], "negatives_by": ["rules"]}
    rows[2] |= {"negatives": ["c"], "negatives_by": [["rules"], []]}
    rows[3] |= {"negatives": [{"text": "d"}]}
    mine_negatives(rows, tmp_path / "out.parquet", vectors, progress=False)
    found = list(load_rows(tmp_path / "out.parquet"))
    first, second = found[:2]
    one, two, three = mined[0]["negatives"]
    assert first["negatives"] == ["a drawing", two, one, three]
    assert first["negatives_scores"][:2] == [None, None]
    assert first["negatives_scores"][2] == pytest.approx(mined[0]["negatives_scores"][0])
    assert first["negatives_by"] == ["", "", "test vectors", "test vectors"]
    assert first["note"] == 7
    assert second["negatives"] == ["b", *mined[1]["negatives"]]
    assert second["negatives_scores"] == pytest.approx([0.5, *mined[1]["negatives_scores"]])
    assert second["negatives_by"] == ["rules", *["test vectors"] * 3]
    assert [row["id"] for row in found] == [str(n) for n in (0, 1, *range(4, 20))]
    report = json.loads((tmp_path / "out.parquet.report.json").read_text())
    assert report["problems"]["other negatives"]["rows"] == 2
    assert "column 'negatives_by' tells not of each of its 1" in report["problems"]["other negatives"]["examples"][0]


def test_rows_that_cannot_be_used_and_files_that_are_kept(tmp_path: Path) -> None:
    rows = written(tmp_path / "pictures")[:12]
    vectors = given(rows)
    rows[2] = {**rows[2], "image": str(tmp_path / "nowhere.png")}
    report = mine_negatives(rows, tmp_path / "out.jsonl", vectors, progress=False)
    assert report["kept"] == 11
    assert report["problems"]["unusable image"]["rows"] == 1
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert not any(text in row["negatives"] for row in lines for text in ("text 2", "third 2"))  # of no picture
    with pytest.raises(DataError, match="row 2"):
        mine_negatives(rows, tmp_path / "strict.jsonl", vectors, strict=True, progress=False)
    with pytest.raises(ValueError, match="same_picture"):
        mine_negatives(rows, tmp_path / "out.jsonl", vectors, MiningOptions(same_picture=None), progress=False)
    (tmp_path / "taken.jsonl").write_text("{}\n")
    with pytest.raises(FileExistsError, match="is there already and is kept"):
        mine_negatives(rows, tmp_path / "taken.jsonl", vectors, progress=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v._replace(images=v.images[1:]), "47 image vectors for 48 rows: one per row"),
        (lambda v: v._replace(texts=v.texts[1:]), "95 text vectors for 96 texts of 48 rows: one per text"),
        (lambda v: v._replace(texts=v.texts[:, 1:]), "image vectors are 6 long and text vectors 5"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(change: Any, told: str, tmp_path: Path) -> None:
    rows = written(tmp_path / "pictures")
    with pytest.raises(DataError, match=told):
        mine_negatives(rows, tmp_path / "out.jsonl", change(given(rows)), progress=False)


def test_columns_of_captions_are_found(tmp_path: Path) -> None:
    rows = written(tmp_path / "pictures")[:6]
    told = [{"captions": row["caption"], "chosen": "said", **row} for row in rows]
    for column in ("caption", "captions", "chosen"):
        assert text_column(told, "auto") == column
        told = [{name: value for name, value in row.items() if name != column} for row in told]
    with pytest.raises(DataError, match="no column"):
        text_column(told, "auto")


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "caption"} for row in written(tmp_path)]
    for column in ("auto", "captoin"):
        with pytest.raises(DataError, match="no column"):
            mine_negatives(rows, tmp_path / "o.jsonl", given(written(tmp_path)), MiningOptions(column=column))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_dual_encoder_mines(name: str, tmp_path: Path) -> None:
    """What it embeds is what the model of transformers says; equal pixels are one picture."""
    encoder = DualEmbedder(save_dual(name, tmp_path / "model"), "cpu", batch_size=5)
    rows = [*captioned(16), *captioned(4)]
    report = mine_negatives(rows, tmp_path / "out.jsonl", encoder, MiningOptions(same_picture=None), progress=False)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (report["pictures"], report["texts"], report["column"]) == (16, 16, "chosen")
    images = encoder([row["image"] for row in rows]).astype(np.float64)
    texts = encoder.texts([row["chosen"] for row in rows[:16]]).astype(np.float64)
    for number, row in enumerate(found):
        scores = texts @ images[number]
        order = [each for each in np.lexsort((np.arange(16), -scores)).tolist() if each != number % 16]
        assert row["negatives"] == [rows[each]["chosen"] for each in order[:3]]
        assert row["negatives_by"] == ["model"] * 3
    assert report["encoder"] == encoder.identity


def job(folder: Path) -> None:
    rows = written(folder.parent / "pictures")
    options = MiningOptions(choice=NegativeChoice(sampling="random", relative_margin=0.05))
    mine_negatives(rows, folder / "out.jsonl", given(rows), options, block_size=5, progress=False)


SLOW = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from mllm_align.data.mine import negative_search
import test_hard_negatives
whole = negative_search._Search.__call__
def slow(self, rows):
    time.sleep(0.3)
    return whole(self, rows)
negative_search._Search.__call__ = slow
test_hard_negatives.job(Path(sys.argv[1]))
"""


def test_a_killed_job_goes_on(tmp_path: Path) -> None:
    assert_survives_a_kill(SLOW, job, "mined_texts", tmp_path)


@pytest.mark.ddp
def test_two_processes_share_the_work(tmp_path: Path) -> None:
    written(tmp_path / "pictures")
    ranks = start_ranks(__file__, tmp_path / "together")
    job(tmp_path / "alone")
    wait_for_ranks(ranks)
    one, other = (tmp_path / name / "out.jsonl" for name in ("alone", "together"))
    assert one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    import sys

    job(Path(sys.argv[1]))
