"""Pages with words whose places are known, and questions that a word on the page answers.

sheets (what stands in which line, hashed) -> drawing (pixels, boxes of words) -> asking -> rows
"""

from mllm_align.data.world.documents.asking import DocumentPair, iter_documents
from mllm_align.data.world.documents.drawing import Word, draw, words
from mllm_align.data.world.documents.rows import document_rows, objects_of
from mllm_align.data.world.documents.sheets import KINDS, PAPERS, Look, Paper, Sheet, draw_sheet

__all__ = [
    "KINDS",
    "PAPERS",
    "DocumentPair",
    "Look",
    "Paper",
    "Sheet",
    "Word",
    "document_rows",
    "draw",
    "draw_sheet",
    "iter_documents",
    "objects_of",
    "words",
]
