"""The package's models inside lmms-eval, so that any of its tasks runs on a base, an adapter and a mixer.

    python -m lmms_eval --model mllm_align --model_args pretrained=MODEL,adapter=FOLDER --tasks mmbench_en_dev

lmms-eval is no dependency: `pip install "mllm-align[lmms-eval]"` gets it with the 80 packages that it needs, and it
finds this through the entry point that the package declares.

requests -> prompts and decoding -> batches -> engine -> answers in the order of the requests
"""

from __future__ import annotations

from typing import Any

NAME = "mllm_align"


def manifests() -> Any:
    """What lmms-eval asks of an entry point: where the classes behind `--model mllm_align` are.

    Generation goes by the chat interface, where a task says where its images stand in the text. lmms-eval scores
    choices by the simple one alone, which `--force_simple` takes.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        NAME, chat_class_path=f"{__name__}.models.ChatModel", simple_class_path=f"{__name__}.models.SimpleModel"
    )
