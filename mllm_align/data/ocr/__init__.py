"""Words on pages: read by an OCR engine, put together until a model's tokens can tell them apart, written as rows."""

from mllm_align.data.ocr.engines import Tesseract, engine_from
from mllm_align.data.ocr.job import OcrOptions, read_pages
from mllm_align.data.ocr.layout import page_objects, page_text
from mllm_align.data.ocr.words import Word, read_words

__all__ = ["OcrOptions", "Tesseract", "Word", "engine_from", "page_objects", "page_text", "read_pages", "read_words"]
