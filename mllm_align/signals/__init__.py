"""From a batch to small tensors: vision once, prefixes once, the head only where a response is scored."""

from mllm_align.signals.measure import EngineOptions, measure
from mllm_align.signals.reference import AdaptersOff, FrozenCopy, NamedAdapter, Reference

__all__ = ["AdaptersOff", "EngineOptions", "FrozenCopy", "NamedAdapter", "Reference", "measure"]
