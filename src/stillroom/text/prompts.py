"""What an answerer reads of a question: the same text for teachers and students."""

from __future__ import annotations

from stillroom.records import Question
from stillroom.text.answers import lettered


def prompt_text(question: Question) -> str:
    """The question, and below it the options where they carry letters.

    Options of the four families stand in their sentences, so nothing is added to them.
    """
    if not lettered(question.options):
        return question.question
    return "\n".join([question.question, "Options:", *question.options])
