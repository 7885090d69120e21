"""Words as the COCO caption tools count them: Penn Treebank tokens, lower case, no punctuation.

The rules of the Stanford tokenizer (CoreNLP 3.4.1, ``-preserveLines -lowerCase``) for the text that
answers and captions are made of, without java; ``coco_java.ptb_tokens`` runs the original. The two
are compared in ``stillroom verify`` where java is there.
"""

from __future__ import annotations

import re

PTB_ID = "ptb/stillroom-1"

#: Punctuation that the COCO tools drop. Their list has the brackets in capitals, so that in lower
#: case they stay: kept as it is.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}

_ABBREVIATIONS = (
    r"(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|inc|ltd|co|corp|ft|ca|jan|feb|mar|apr|jun|jul|aug|sept?"
    r"|oct|nov|dec)"
)
#: Alternatives in turn; a number loses against a longer word that begins with it ("80cm").
_TOKEN = re.compile(
    r"(?P<tag></?[a-z][^<>\s]{0,40}>)"
    r"|(?P<address>www\.\S+|[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+|@\w+)"
    rf"|(?P<abbreviation>\b(?:{_ABBREVIATIONS}\.(?=\s+\S)|etc\.|no\.(?=\s*\d)|(?:[a-z]\.)+))"
    r"|(?P<decade>['’]\d0s\b)"
    r"|(?P<number>\d+(?:[-/]\d+)+|(?:(?<![\w)])[-+])?(?:\d*(?:[.:,]\d+)+|\d+(?![^\W_]|['’][a-z])))"
    r"|(?P<dotted>[^\W\d_]+(?:\.[^\W\d_]+)+)"
    r"|(?P<word>[^\W_]+(?:[-_'’&/][^\W_]+)*)"
    r"|(?P<stops>[!?]+)"
    r"|(?P<dropped>\.{2,}|-{2,}|[–—…\"“”])"
    r"|(?P<other>\S)"
)
# Pictures and arrows: the original knows no token for them and leaves them out.
_FIRST_PICTURE = "\u2190"
_CLITIC = re.compile(r"(.*?)(n['’]t|['’](?:s|m|d|ll|re|ve))$")
_SPLIT_WORDS = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "gotta": ["got", "ta"],
    "wanna": ["wan", "na"],
    "lemme": ["lem", "me"],
    "gimme": ["gim", "me"],
    "y'all": ["y'", "all"],
}


def ptb_words(text: str) -> list[str]:
    """The tokens of a text without punctuation, as BLEU, ROUGE-L and CIDEr of COCO count them."""
    return [token for token in _tokens(text) if is_counted(token)]


def is_counted(token: str) -> bool:
    """Whether the COCO tools count the token as a word."""
    return token not in _DROPPED


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    for match in _TOKEN.finditer(text.lower()):
        if match["word"] is not None:
            found += _word(match["word"])
        elif match["dropped"] is None and match[0] < _FIRST_PICTURE:
            found.append(_BRACKETS.get(match[0], match[0]))
    return found


def _word(word: str) -> list[str]:
    if word in _SPLIT_WORDS:
        return _SPLIT_WORDS[word]
    clitic = _CLITIC.fullmatch(word)
    if clitic and clitic[1]:
        return [clitic[1], clitic[2].replace("’", "'")]
    return [word]
