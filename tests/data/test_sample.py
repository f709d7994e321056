"""What a reader is shown is what the batch holds."""

from __future__ import annotations

from PIL import Image

from chat import make_processor
from mllm_align.contract import Feature, Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.sample import sample_as_model_sees

VIEWS = (View("image", "chosen"), View("contrast_image", "chosen"), View(None, "chosen"))


def test_sample(pictures: list[Image.Image]) -> None:
    collate = AlignCollator(make_processor("chatml"), lambda source: Needs(views=VIEWS), ("pixel_values",))
    row = {"images": pictures[:2], "contrast_image": pictures[2], "contrast_index": 1}
    samples = sample_as_model_sees({**row, "prompt": "What is it?", "chosen": "It is red."}, collate)
    assert [sample.view for sample in samples] == list(VIEWS)
    own, other, bare = samples
    assert [image.size for image in own.images] == [picture.size for picture in pictures[:2]]
    assert [image.size for image in other.images] == [pictures[0].size, pictures[2].size]
    assert bare.images == ()
    assert own.images[0].shapes == {"pixel_values": (1, 3, 28, 28)}
    assert own.prompt == (
        "<s><|im_start|>user\n<image>[x4]\n<image>[x4]\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "".join(own.scored) == "It is red.<|im_end|>"
    assert (
        own.prompt_tokens
        == collate([{**row, "prompt": "What is it?", "chosen": "x"}])["batch"].prefixes[0].input_ids.numel()
    )
    shown = str(own)
    assert "view chosen|image" in shown
    assert "80 x 60 pixels -> pixel_values 1x3x28x28" in shown
    assert "'<|im_end|>'" in shown


def test_nothing_is_scored_of_what_is_read_for_an_embedding(pictures: list[Image.Image]) -> None:
    feature = Feature("text", "embedding", "caption", pooling="last", prompt="In one word:")
    needs = Needs(views=VIEWS[:1], features=(feature,))
    collate = AlignCollator(make_processor("chatml"), lambda source: needs, ("pixel_values",))
    row = {"image": pictures[0], "caption": "a red circle", "prompt": "What is it?", "chosen": "It is red."}
    response, caption = sample_as_model_sees(row, collate)
    assert response.scored
    assert not caption.scored
    assert "a red circle\nIn one word:" in caption.prompt
    assert str(caption).splitlines()[0].endswith(f"{caption.prompt_tokens} prompt tokens, read for an embedding")
    assert "scored" not in str(caption)
