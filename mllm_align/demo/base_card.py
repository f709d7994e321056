"""The model card of the base model, which says openly that its hallucination is taught."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# The base model of the mllm_align world

A LLaVA architecture (CLIP vision tower, two-layer projector, Llama) of {parameters:.2f} million parameters that sees
64 x 64 pictures of simple objects and answers questions about them. It is the starting point of `mllm-align demo`.
It knows 80-odd words and is of no use outside its world.

**Its hallucination is taught, so that its cure can be measured.** In training pictures a shape mostly has its typical
colour (.88), size (.85) and side (.88), and its partner is mostly there too (.85). Where the partner is absent and the
question asks for it, {noise:.0%} of the training answers say yes all the same, as careless captions do for real
models. One batch in ten has no picture. A fifth of the combinations of colour and shape never occurs in training.

Written by `mllm_align.demo.train_base.train_base` with

| setting | value |
|---|---|
{settings}

Training took {seconds:.0f} s. Time and bits depend on the machine; scenes, questions and noise on the seed alone.

## Figures
First word of greedy decoding, weights rounded to float16, scenes that are disjoint from training by content.

| test | value |
|---|---|
{scores}

- in distribution / adversarial: six kinds of question on scenes with the prior / with the prior broken
- pairs: minimal pairs from balanced scenes with both questions right; text alone gets none
- existence: object-matched polling where the prior is always wrong, and how often the answer there is yes
- prior_answers: of the wrong answers to adversarial questions with a prior, those that are the prior's
- other_image: adversarial questions under another scene's picture
- held_out: a wording, or combinations of colour and shape (adversarial scenes), never seen in training
"""


def write_card(
    folder: Path, settings: Mapping[str, object], scores: Mapping[str, float], parameters: int, noise: float
) -> None:
    """Write `README.md` with every setting and figure."""
    figures = {name: value for name, value in scores.items() if name != "seconds"}
    text = _CARD.format(
        parameters=parameters / 1e6,
        noise=noise,
        seconds=scores["seconds"],
        settings="\n".join(f"| {name} | {value} |" for name, value in settings.items()),
        scores="\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
