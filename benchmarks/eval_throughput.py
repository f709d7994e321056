"""Questions a second: the evaluation's runner against the loop that everybody writes first.

    python benchmarks/eval_throughput.py --json benchmarks/eval_throughput.json
    python benchmarks/eval_throughput.py --model llava-hf/llava-1.5-7b-hf --load-in-4bit --json gpu.json

Both answer the same questions about rendered scenes with the same model, greedily, up to the same number of tokens.
The loop takes one question after the other: chat template, processor, `model.generate`, decode. Ours is
`answer(..., method="generate")` as `mllm-align eval run` calls it, without a cache of answers. They take turns, in one
process. The texts must be the same (a tie within rounding may fall either way; how many did is written down).

Written to the JSON: `seconds` of both per round, `questions_a_second`, `speedup` (loop / ours seconds, the median of
the rounds' ratios) and `same_texts`, a share.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from mllm_align.models import load_model
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.items import Item
from mllm_align_eval.runner import answer
from results import finish, parser_of, print_table

SCENES = {"small": 150, "tiny": 6}
MAX_NEW_TOKENS = 16
LEAST_SAME = 0.98


def by_loop(model: Any, processor: Any, items: Sequence[Item]) -> list[str]:
    """One question after the other, through the processor and `generate`."""
    texts = []
    for item in items:
        content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        image = item.pictures[0].load()
        # The template writes the BOS token itself where there is one.
        inputs = processor(text=[prompt], images=[image], return_tensors="pt", add_special_tokens=False)
        inputs = inputs.to(model.device, model.dtype)
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = output[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


def by_runner(model: Any, processor: Any, items: Sequence[Item], batch_size: int) -> list[str]:
    """The evaluation's runner."""
    given = answer(
        model,
        processor,
        items,
        method="generate",
        batch_size=batch_size,
        max_new_tokens=MAX_NEW_TOKENS,
        identity="benchmark",
    )
    return [entry.text for entry in given]


def main() -> None:
    """Runs both in turn and prints the ratio."""
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--model", default="demo-base", help="Hub id or folder (default: %(default)s)")
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--batch-size", type=int, default=64, help="of the runner (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.preset not in SCENES:
        parser.error(f"--preset {', '.join(SCENES)} say how many questions; name a large model with --model")
    torch.set_num_threads(arguments.threads)
    model, processor = load_model(arguments.model, load_in_4bit=arguments.load_in_4bit)
    scenes = SCENES[arguments.preset]
    items = world_items(scenes, scenes, scenes, regimes=["adversarial"])
    seconds: dict[str, list[float]] = {"loop": [], "ours": []}
    texts: dict[str, list[str]] = {}
    for number in range(arguments.rounds):
        for name in ("loop", "ours") if number % 2 else ("ours", "loop"):
            started = time.perf_counter()
            if name == "loop":
                texts[name] = by_loop(model, processor, items)
            else:
                texts[name] = by_runner(model, processor, items, arguments.batch_size)
            seconds[name].append(time.perf_counter() - started)
    same = statistics.mean(a == b for a, b in zip(texts["loop"], texts["ours"], strict=True))
    if same < LEAST_SAME:
        raise SystemExit(f"only {same:.1%} of the texts are the same: the two sides do not answer the same question")
    rates = {name: len(items) / statistics.median(values) for name, values in seconds.items()}
    speedup = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["ours"], strict=True))
    rows = [[name, f"{rates[name]:.1f}", f"{statistics.median(seconds[name]):.2f}"] for name in seconds]
    print_table(["side", "questions a second", "seconds"], rows)
    print(f"{speedup:.2f} times as fast on {len(items)} questions; {same:.1%} of the texts are the same")
    result = {
        "model": arguments.model,
        "load_in_4bit": arguments.load_in_4bit,
        "batch_size": arguments.batch_size,
        "questions": len(items),
        "max_new_tokens": MAX_NEW_TOKENS,
        "seconds": seconds,
        "questions_a_second": rates,
        "speedup": speedup,
        "same_texts": same,
    }
    finish(result, arguments)


if __name__ == "__main__":
    main()
