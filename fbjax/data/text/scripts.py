"""Scripts that write no spaces between words: about how many words a text has, and where a vocabulary may cut it."""

import re

IDEOGRAPHS = "\u2e80-\u2fdf\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HIRAGANA = "\u3041-\u3096\u309d-\u309f"
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
VOICING = "\u3099\u309a"  # combining marks of kana
SOUTH_EAST_ASIAN = (  # Thai, Lao, Burmese, Khmer, Tai Tham, Javanese
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u109d\u1780-\u17d3\u1a20-\u1a7f"
    "\ua980-\ua9c0\uaa60-\uaa7f"
)
LEADING = "\u0e40-\u0e44\u0ec0-\u0ec4"  # Thai and Lao vowels that stand before their consonant
TRAILING = "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3"  # vowels after it that are letters, not marks
STACKERS = "\u1039\u17d2\u1a60\ua9c0"  # the next consonant stands below
CODA = (  # a consonant that surely ends a syllable: Burmese by its mark, Thai and Lao after a short a
    "[\u1000-\u1021](?=\u1037?[\u103a\u1039])|\u0e31[\u0e48-\u0e4b]?[\u0e01-\u0e2e]|\u0eb1[\u0ec8-\u0ecb]?[\u0e81-\u0eae]"
)

# For the library `tokenizers`. A syllable is a consonant and all that is written around it. Where it begins and ends
# does not depend on the rest of the text, so a query's syllables are those of the texts.
SYLLABLE = f"[{LEADING}]*[{SOUTH_EAST_ASIAN}](?:[{STACKERS}][{SOUTH_EAST_ASIAN}]|{CODA}|\\p{{M}}|[{TRAILING}])*"
KATAKANA_RUN = f"[{KATAKANA}][{KATAKANA}{VOICING}]*"
# Marks that may be missing, as accents. In other scripts they are vowels, or they make another letter (kana).
ACCENTS = f"[\\p{{Mn}}&&[\\p{{Inherited}}\\p{{Cyrillic}}\\p{{Hebrew}}\\p{{Arabic}}]&&[^{VOICING}]]"

LETTERS_A_WORD = {IDEOGRAPHS: 2, HIRAGANA + KATAKANA: 4, SOUTH_EAST_ASIAN: 5}  # about
_LETTERS = {re.compile(f"[{letters}]"): number for letters, number in LETTERS_A_WORD.items()}
UNSPACED = re.compile(f"[{''.join(LETTERS_A_WORD)}]")


def num_words(text: str) -> float:
    """The words of a text with single spaces; in scripts without spaces about as many as its letters make."""
    number = text.count(" ") + 1.0
    if text.isascii():
        return number
    found = sum(len(letters.findall(text)) / a_word for letters, a_word in _LETTERS.items())
    return max(number, found)
