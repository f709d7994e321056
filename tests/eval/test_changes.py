from eval_items import item, said
from mllm_align_eval.changes import changed_answers


def run(questions, base, aligned, **settings):
    answers = {
        arm: {("logprob", "right"): [said(q, c) for q, c in zip(questions, choices, strict=True)]}
        for arm, choices in (("base", base), ("aligned", aligned), ("control", base))
    }
    return changed_answers(questions, answers, **settings)


def make(number):
    kinds = ("existence", "relation")
    return [
        item(f"i{n}", "yes", kind=kinds[n % 4 == 3], prompt=f"question {n}", prior_answer="no") for n in range(number)
    ]


def test_only_changes_are_shown_improvements_first():
    entries = run(make(4), ["no", "yes", "yes", "no"], ["yes", "no", "yes", "no"])
    assert [entry.question for entry in entries] == ["question 0", "question 1"]
    assert [entry.outcome("base", "aligned") for entry in entries] == ["fixed", "broken"]
    assert entries[0].answers == {"base": "no", "aligned": "yes", "control": "no"}
    assert entries[0].prior == "no"


def test_kinds_take_turns():
    entries = run(make(8), ["no"] * 8, ["yes"] * 8, num_each=4)
    assert [entry.kind for entry in entries] == ["existence", "relation", "existence", "relation"]


def test_splits_and_missing_arms():
    questions = make(2)
    assert run(questions, ["no", "no"], ["yes", "yes"], splits=("pairs",)) == []
    assert run(questions, ["no", "no"], ["yes", "yes"], after="tuned") == []


def test_unreadable_text_is_shown_as_it_is():
    (entry,) = run(make(1), [None], ["yes"])
    assert entry.answers["base"] == "?"
