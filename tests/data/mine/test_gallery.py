import pytest
from PIL import Image

from mllm_align.data.mine.gallery import Gallery

ROWS = [{"id": "a", "image": "a.png"}, {"images": ["b.png"], "image": None}, {"images": ["c.png", "d.png"]}, {"x": 1}]


def test_pictures_of_rows_come_first() -> None:
    gallery = Gallery(ROWS, [{"id": "e.png", "image": "/e.png"}])
    assert [picture["image"] for picture in gallery] == ["a.png", "b.png", None, None, "/e.png"]
    assert [picture["id"] for picture in gallery] == ["a", None, None, None, "e.png"]
    assert len(gallery) == 5
    with pytest.raises(IndexError):
        gallery[5]


def test_pictures_are_handed_on_as_they_are() -> None:
    picture = Image.new("RGB", (4, 4))
    assert Gallery([{"image": picture}])[0]["image"] is picture
    assert list(Gallery([])) == []
