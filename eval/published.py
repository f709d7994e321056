"""The published metrics of benchmarks, computed from a model's answers under every picture arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import sub, truediv

from mllm_align_eval.answers import scored
from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.benchmarks.objects import matched_lengths
from mllm_align_eval.items import Answer, ImageArm, Item, Method
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.measures import ABLATIONS, GENERATED
from mllm_align_eval.metrics import Measures

Answers = Mapping[tuple[Method, ImageArm], Sequence[Answer]]
PER_BYTE, PMI, MATCHED = "_per_byte", "_pmi", "_matched"


def published_measures(
    items: Sequence[Item],
    answers: Answers,
    benchmarks: Mapping[str, Benchmark],
    parser: str = STRICT,
) -> Measures:
    """The metrics of each benchmark of which every question of a kind of answer was asked.

    Keys are the benchmark's own, with `_other_image`, `_blank_image` or `_no_image` where the picture was not the
    question's, and `_generated` for generated texts. Captions are scored by the sum of their log-probabilities, and
    again with `_per_byte` and `_pmi` (see `caption_scores`). Similarities are taken as they are, with ties.

    Args:
        items: All items of the run.
        answers: Per method and image arm the answers of one model.
        benchmarks: By name; items of others have no published metrics.
        parser: By whose rules generated texts were read. Log-probabilities need no reading, so theirs are strict.
    """
    found: Measures = {}
    for ending, said, is_read in _ways(items, answers):
        for name, benchmark in benchmarks.items():
            asked = [item for item in items if item.benchmark == name and item.id in said]
            if not asked:
                continue
            rules = parser if is_read and parser in benchmark.parsers else STRICT
            found |= {key + ending: measure for key, measure in benchmark.score(asked, said, rules).items()}
    compared = {entry.item: entry for entry in answers.get(("similarity", "right"), ())}
    for name, benchmark in benchmarks.items() if compared else ():
        asked = [item for item in items if item.benchmark == name and item.id in compared]
        found |= benchmark.ties(asked, compared) if benchmark.ties is not None and asked else {}
    return found


def length_matched(
    items: Sequence[Item],
    first: Answers,
    second: Answers,
    benchmarks: Mapping[str, Benchmark],
    parser: str = STRICT,
) -> tuple[Measures, Measures]:
    """Two models' metrics of descriptions of equal length: each pair cut to the words of the shorter one.

    Keys end in `_matched_generated`. A model that writes more names more objects, right and wrong; what is left of a
    difference here is not of length.
    """
    pair = [{answer.item: answer for answer in given.get(("generate", "right"), ())} for given in (first, second)]
    found: tuple[Measures, Measures] = ({}, {})
    for name, benchmark in benchmarks.items():
        asked = [item for item in items if item.benchmark == name and not item.is_closed]
        asked = [item for item in asked if all(item.id in said for said in pair)]
        if not benchmark.describes or not asked:
            continue
        rules = parser if parser in benchmark.parsers else STRICT
        texts = matched_lengths(*({item.id: said[item.id].text for item in asked} for said in pair))
        for measures, said, cut in zip(found, pair, texts, strict=True):
            answers = {item.id: replace(said[item.id], text=cut[item.id]) for item in asked}
            scored_so = benchmark.score(asked, answers, rules)
            measures |= {f"{key}{MATCHED}{GENERATED}": measure for key, measure in scored_so.items()}
    return found


def caption_scores(items: Sequence[Item], answers: Answers) -> Iterator[tuple[str, dict[str, Answer]]]:
    """The answers to caption items by scores that do not favour short or common captions.

    `_per_byte`: the log-probability over the caption's length in UTF-8, which is the lm-evaluation-harness's acc_norm.
    `_pmi`: log p(caption | image) - log p(caption | no image), pointwise mutual information (Lin et al. 2024,
    https://arxiv.org/abs/2306.01879, alpha 1), where the question was asked without its image too.
    """
    captions = {item.id: item for item in items if item.is_closed and NUM_SCORES in item.truth}
    with_image = {a.item: a for a in answers.get(("logprob", "right"), ()) if a.item in captions and a.scores}
    if not with_image:
        return
    sizes = {name: [max(1, len(text.encode())) for text in captions[name].choices] for name in with_image}
    yield PER_BYTE, {name: _combined(captions[name], a.scores, sizes[name], truediv) for name, a in with_image.items()}
    without = {a.item: a.scores for a in answers.get(("logprob", "none"), ()) if a.item in with_image and a.scores}
    if without:
        yield PMI, {name: _combined(captions[name], with_image[name].scores, b, sub) for name, b in without.items()}


def _combined(
    item: Item, scores: Sequence[float], other: Sequence[float], combine: Callable[[float, float], float]
) -> Answer:
    return scored(item, [combine(score, value) for score, value in zip(scores, other, strict=True)])


def _ways(items: Sequence[Item], answers: Answers) -> Iterator[tuple[str, dict[str, Answer], bool]]:
    """How keys end, the answers by item, and whether they are texts that a parser read."""
    for (method, image), given in answers.items():
        ending = "" if image == "right" else f"_{ABLATIONS[image]}_image"
        generated = method == "generate"
        yield ending + (GENERATED if generated else ""), {entry.item: entry for entry in given}, generated
    for ending, said in caption_scores(items, answers):
        yield ending, said, False
