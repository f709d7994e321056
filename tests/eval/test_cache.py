import pytest

from eval_items import item, picture, said
from mllm_align_eval.cache import AnswerCache, content_key, image_digest


def entries(number):
    return [(f"key{n}", said(item(f"i{n}"), "yes", scores=(-0.1, -2.5))) for n in range(number)]


def test_answers_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    cache = AnswerCache(path)
    cache.add(entries(3))
    again = AnswerCache(path)
    assert [again.get(key) for key, _ in entries(3)] == [answer for _, answer in entries(3)]
    assert again.get("other") is None


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_off_by_a_kill_is_dropped_and_the_file_goes_on(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    AnswerCache(path).add(entries(3))
    path.write_bytes(path.read_bytes()[:-cut])
    cache = AnswerCache(path)
    assert len(cache) == 2
    cache.add(entries(3)[2:])
    assert len(AnswerCache(path)) == 3
    assert path.read_bytes().count(b"\n") == 3


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"loss": 1}\n{"loss": 2}\n')
    with pytest.raises(ValueError, match="line 1, is not a cached answer"):
        AnswerCache(path)
    assert path.read_text().count("loss") == 2


def test_keys_tell_contents_apart():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert image_digest(picture(3)) == image_digest(picture(3))
    assert image_digest(picture(3)) != image_digest(picture(4))
    assert image_digest(picture(0).resize((8, 32))) != image_digest(picture(0))


def test_processes_write_a_file_each_and_read_all(tmp_path):
    path = tmp_path / "answers.jsonl"
    first, second = AnswerCache(path), AnswerCache(path, rank=1)
    first.add(entries(2))
    second.add(entries(3)[2:])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl", "answers.rank1.jsonl"]
    assert len(first) == 2
    assert [len(AnswerCache(path, rank)) for rank in (0, 1, 2)] == [3, 3, 3]
    # What another process is just writing is left alone.
    whole = second.path.read_bytes()
    second.path.write_bytes(whole[:-3])
    assert len(AnswerCache(path)) == 2
    assert second.path.read_bytes() == whole[:-3]
    assert len(AnswerCache(path, rank=1)) == 2
    assert second.path.read_bytes() == b""
