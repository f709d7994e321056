import pytest

from mllm_align.data.mine.masking import (
    MASK,
    Masking,
    Segment,
    Template,
    read_segments,
    rule_segments,
    spoken_segments,
)
from speakers import Scripted

TEXT = "A small red dog is sitting near the two wooden chairs, and Jörg smiles."


def texts(segments: list[Segment] | None, text: str = TEXT) -> list[str]:
    return [text[segment.start : segment.end] for segment in segments or []]


def test_the_rule_takes_runs_of_one_kind() -> None:
    found = rule_segments(TEXT)
    assert texts(found) == ["small red", "dog", "sitting", "near", "two wooden", "chairs", "Jörg smiles"]
    assert [segment.kind[0] for segment in found] == ["a", "o", "o", "r", "a", "o", "o"]


@pytest.mark.parametrize("text", ["", "It is that.", "..."])
def test_what_says_nothing_has_no_segments_and_no_template(text: str) -> None:
    assert rule_segments(text) == []
    assert Masking()(text, [], "key") is None


@pytest.mark.parametrize("text", ["yes", "red", "three", "No.", "on the left"])
def test_a_closed_answer_is_masked(text: str) -> None:
    template = Masking()(text, rule_segments(text), "key")
    assert template is not None
    assert template.masked.count(MASK) == 1
    assert template.filled(template.holes) == text


@pytest.mark.parametrize(("share", "most", "holes"), [(0.5, 8, 4), (1.0, 8, 7), (1.0, 2, 2), (0.01, 8, 1)])
def test_how_much_is_masked(share: float, most: int, holes: int) -> None:
    template = Masking(share, most)(TEXT, rule_segments(TEXT), "key")
    assert template is not None
    assert len(template.holes) == holes
    assert template.filled(template.holes) == TEXT


def test_the_draw_depends_on_seed_and_row() -> None:
    segments = rule_segments(TEXT)
    drawn = {
        (seed, key): Masking(seed=seed)(TEXT, segments, key).masked for seed in range(5) for key in ("a", "b", "c")
    }
    assert len(set(drawn.values())) > 5
    assert drawn == {(s, k): Masking(seed=s)(TEXT, segments, k).masked for s in range(5) for k in ("a", "b", "c")}


def test_a_template_is_filled_up_to_a_hole() -> None:
    template = Template(("a ", " cat on the ", "."), ("red", "left"))
    assert template.masked == "a [MASK] cat on the [MASK]."
    assert template.filled([]) == "a "
    assert template.filled(["blue"]) == "a blue cat on the "
    with pytest.raises(ValueError, match="3 fills for 2 holes"):
        template.filled(["a", "b", "c"])


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("small red dog\nsitting\nnear", ["small red dog", "sitting", "near"]),
        ('1. "Small  Red"\n- chairs.\n* **Jörg**\n', ["small red", "chairs", "Jörg"]),
        ("dog\nred dog\nunicorn\nthe\n", ["dog"]),  # over another one, not there, nothing said
        ("chair\nwo", []),  # only parts of words
        ("Here is the answer to your question about the picture", []),
        ("", []),
    ],
)
def test_segments_of_a_reply(reply: str, found: list[str]) -> None:
    assert texts(read_segments(TEXT, reply)) == found


def test_a_phrase_is_what_its_last_word_is() -> None:
    (segment,) = read_segments(TEXT, "small red dog") or []
    assert segment.kind == "object"


def test_a_model_is_asked_without_a_picture_for_all_at_once() -> None:
    speaker = Scripted(lambda ask: "dog" if "dog" in ask.prompt else "I cannot do that.")
    found = spoken_segments([("What is it?", "a dog"), ("And this?", "a cat")], speaker)
    assert [texts(found[0], "a dog"), found[1]] == [["dog"], None]
    assert speaker.calls == 1
    assert "What is it?" in speaker.asked[0].prompt
    assert not speaker.asked[0].images
    assert spoken_segments([], speaker) == []


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.1}, {"max_segments": 0}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).removeprefix("max_")):
        Masking(**options)
