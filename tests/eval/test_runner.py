from dataclasses import replace

import pytest
from PIL import Image

from eval_items import StubEngine, item, picture
from mllm_align_eval.arms import Arm
from mllm_align_eval.benchmarks.captions import caption_item
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.items import Item
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.mismatch import lacks_other_images
from mllm_align_eval.runner import AnswerErrors, answer, answer_arms, is_askable
from tiny import tiny


def shade(request):
    return request.images[0].getpixel((0, 0))[0]


def items(number):
    return [
        item(f"i{n}", ("no", "yes")[n % 2], load=lambda n=n: picture(n), prompt="x" * (40 * (n % 5) + 1))
        for n in range(number)
    ]


def ask(asked, rule, **settings):
    engine = StubEngine(rule)
    settings = {"batch_size": 4, "identity": "stub", "method": "logprob", **settings}
    return answer(None, None, asked, engine=engine, **settings), engine


def test_answers_are_in_the_order_of_the_items_and_marked():
    answers, engine = ask(items(10), lambda r: "yes" if shade(r) % 2 else "no")
    assert [entry.item for entry in answers] == [f"i{n}" for n in range(10)]
    assert all(entry.right for entry in answers)
    assert answers[1].scores == (0.0, -1.0)
    lengths = [len(request.prompt) for request in engine.asked]
    assert lengths == sorted(lengths), "items of similar length share a batch"


def test_image_arms():
    _, engine = ask(items(10), lambda r: "yes" if shade(r) % 2 else "no")
    _, other = ask(items(10), lambda r: "yes", image="other")
    _, none = ask(items(10), lambda r: "yes", image="none")
    assert sorted(map(shade, other.asked)) == list(range(10))
    pairs = zip(engine.asked, other.asked, strict=True)
    assert all(shade(a) != shade(b) and a.prompt == b.prompt for a, b in pairs)
    assert all(request.images == () for request in none.asked)


def test_generated_texts_are_kept_and_parsed():
    texts = {0: "No.", 1: "There is a star", 2: "I cannot tell", 3: "blue"}
    answers, _ = ask(items(4), lambda r: texts[shade(r)], method="generate")
    assert [entry.text for entry in answers] == list(texts.values())
    assert [entry.state for entry in answers] == ["answered", "answered", "abstained", "invalid"]
    assert [entry.right for entry in answers] == [True, True, False, False]


def test_cached_answers_are_not_asked_for_again(tmp_path):
    cache = AnswerCache(tmp_path / "a.jsonl")
    first, _ = ask(items(6), lambda r: "yes", cache=cache)
    again, engine = ask(items(8), lambda r: "yes", cache=AnswerCache(tmp_path / "a.jsonl"))
    assert len(engine.asked) == 2
    assert again[:6] == first
    for change in ({"identity": "another"}, {"method": "generate"}):
        assert len(ask(items(6), lambda r: "yes", cache=cache, **change)[1].asked) == 6, change


def test_the_same_question_is_asked_once():
    answers, engine = ask(items(10), lambda r: "yes", image="none", batch_size=10)
    assert [request.prompt for request in engine.asked] == ["x" * (40 * n + 1) for n in range(5)]
    assert [entry.right for entry in answers] == [bool(n % 2) for n in range(10)]


def test_cached_answers_are_marked_anew(tmp_path):
    cache = AnswerCache(tmp_path / "a.jsonl")
    for method in ("logprob", "generate"):
        ask(items(2), lambda r: "yes", cache=cache, method=method)
        flipped = [Item(**{**vars(old), "id": f"new{n}", "answer": "yes"}) for n, old in enumerate(items(2))]
        answers, engine = ask(flipped, lambda r: "yes", cache=cache, method=method)
        assert not engine.asked
        assert [(entry.item, entry.right) for entry in answers] == [("new0", True), ("new1", True)]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    def dies(request):
        if shade(request) == 7:
            raise KeyboardInterrupt
        return "yes"

    with pytest.raises(KeyboardInterrupt):
        ask(items(12), dies, cache=AnswerCache(tmp_path / "a.jsonl"))
    kept = len(AnswerCache(tmp_path / "a.jsonl"))
    _, engine = ask(items(12), lambda r: "yes", cache=AnswerCache(tmp_path / "a.jsonl"))
    assert kept > 0
    assert len(engine.asked) == 12 - kept


def test_a_failing_item_is_an_error_and_does_not_cost_its_neighbours(tmp_path):
    def fails(request):
        if shade(request) == 3:
            raise RuntimeError("boom")
        return "yes"

    cache = AnswerCache(tmp_path / "a.jsonl")
    with pytest.raises(AnswerErrors, match=r"1 of 8 items .* 'i3': RuntimeError: boom"):
        ask(items(8), fails, cache=cache)
    assert len(cache) == 7
    answers, _ = ask(items(8), fails, on_error="count")
    assert [entry.state for entry in answers].count("error") == 1
    assert answers[3].error == "RuntimeError: boom"
    assert not answers[3].right


def test_a_missing_picture_is_an_error_of_its_item():
    def missing():
        raise OSError("no such picture")

    asked = [*items(3), item("bad", load=missing)]
    with pytest.raises(AnswerErrors, match="no such picture"):
        ask(asked, lambda r: "yes")


@pytest.mark.parametrize("kind", [OSError, ValueError, SyntaxError, Image.DecompressionBombError])
def test_broken_pictures_are_all_named_however_many_there_are(kind):
    def broken():
        raise kind("broken")

    asked = [*items(3), *(item(f"bad{n}", load=broken) for n in range(30))]
    with pytest.raises(
        AnswerErrors, match=r"30 of 33 .* 30 pictures cannot be read \(bad0: broken; .*; and 25 more\)"
    ):
        ask(asked, lambda r: "yes")


def test_a_broken_model_stops_the_run_early():
    calls = []

    def fails(request):
        calls.append(request)
        raise RuntimeError("out of memory")

    with pytest.raises(AnswerErrors):
        ask(items(200), fails, on_error="count")
    assert len(calls) < 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"image": "wrong"}, "image must be"), ({"method": "x"}, "method must be"), ({"batch_size": 0}, "batch_size")],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ask(items(2), lambda r: "yes", **settings)


def test_two_items_of_one_id():
    with pytest.raises(ValueError, match="'i0'"):
        ask([*items(2), *items(1)], lambda r: "yes")


def test_equal_scores_are_no_answer():
    class Tied(StubEngine):
        def choice_logps(self, requests):
            return [[-1.0 for _ in request.choices] for request in requests]

    tied = answer(None, None, items(2), engine=Tied(lambda r: "yes"), identity="tied", method="logprob")
    assert [(entry.choice, entry.right, entry.state) for entry in tied] == [(None, False, "invalid")] * 2


def test_captions_are_scored_and_queries_are_put_to_nobody():
    (plain,) = items(1)
    caption = caption_item("x/0", "s", "k", "c", plain.pictures[0], ("a cat", "a dog"), 0)
    query = replace(plain, choices=(), answer="", truth={NUM_SCORES: 5})
    asked = [(each, method) for each in (plain, caption, query) for method in ("logprob", "generate")]
    assert [is_askable(each, method, "right") for each, method in asked] == [True, True, True, False, False, False]


def test_where_there_is_no_other_image_that_arm_is_left_out(caplog):
    """As of the first six questions of POPE, which are about one image."""
    same = [item(f"i{n}", ("no", "yes")[n % 2], cluster="one") for n in range(6)]
    assert "6 of 6 items are about one scene" in lacks_other_images(same)
    assert lacks_other_images(items(6)) == ""
    model, processor = tiny("llava")
    found = answer_arms(
        model, processor, same, [Arm("base")], images=("right", "other"), methods=("logprob",), show_progress=False
    )
    assert set(found["base"]) == {("logprob", "right")}
    assert "world/adversarial: 6 of 6 items are about one scene" in caplog.text
