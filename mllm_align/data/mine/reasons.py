"""Why rows were dropped, in words: one half of a sentence for every name that a report counts them under."""

from __future__ import annotations

REASONS = {
    # What is wrong with a rejected answer (`differing.FILTERS`).
    "empty": "the model said nothing",
    "refusal": "the model said that it cannot see or tell",
    "repetition": "the model repeats itself",
    "unfinished": "the answer was cut before its end: more --max-new-tokens",
    "equal": "it says the very same as chosen",
    "polarity": "both say yes, both say no, or only one of them does either",
    "numbers": "it names the same number as chosen, or none",
    "same content": "it says the same in other words, so it is not wrong",
    "nothing new": "it has no word of content that chosen has not, so nothing in it can be wrong (--min-new)",
    "overlap": "it shares too many words with chosen (--max-overlap)",
    "length": "it is too short or too long beside chosen (--length-ratio)",
    "similarity": "the text encoder finds it too similar to chosen (--max-text-similarity)",
    # What became of a response that was to be completed on a similar picture (`realign`).
    "nothing to mask": "chosen has no segment that could be masked",
    "no neighbour": "no other picture is within --band",
    "not completed": "the model did not give the response back with its gaps filled",
    "too similar": "every completion says what chosen says, or is too similar to it (--max-text-similarity)",
}
