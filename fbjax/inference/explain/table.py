"""An explanation as lines for a terminal."""

import numpy as np

from fbjax.inference.explain.explanation import Explanation

BAR = 24  # letters of the strongest word's bar


def format_table(explanation: Explanation) -> list[str]:
    """The score, words with their values and bars, and the patches in hundredths of the strongest."""
    digits = 2 if explanation.scores_matches else 3
    unit = "above 0: a match" if explanation.scores_matches else "a cosine"
    lines = [f"score {explanation.score:+.{digits}f} ({unit})"]
    if explanation.without_words is not None:
        words, patches = explanation.without_words, explanation.without_patches
        lines[0] += f"; with every word hidden {words:+.{digits}f}, with every patch hidden {patches:+.{digits}f}"
    return [*lines, "", *_words(explanation), "", *_patches(explanation)]


def _words(explanation: Explanation) -> list[str]:
    width = max((len(word) for word, _ in explanation.words), default=0)
    strongest = max((abs(value) for _, value in explanation.words), default=0.0) or 1.0
    attended = explanation.word_patches
    verb = "goes to" if explanation.method == "alignment" else "attends to"
    lines = ["words" + (f", and the patch that each {verb} most (row, column)" if attended is not None else "")]
    for number, (word, value) in enumerate(explanation.words):
        bar = ("+" if value > 0 else "-") * round(BAR * abs(value) / strongest)
        line = f"  {word:{width}}  {value:+.3f}  {bar:{BAR}}"
        if attended is not None:
            row, column = np.unravel_index(attended[number].argmax(), attended[number].shape)
            line += f"  {row + 1}, {column + 1}"
        lines.append(line.rstrip())
    return lines


def _patches(explanation: Explanation) -> list[str]:
    patches = explanation.patches
    strongest = patches.flat[np.abs(patches).argmax()]
    shares = np.rint(100 * patches / (abs(strongest) or 1.0)).astype(int)
    lines = [f"patches, from the top left, in hundredths of the strongest ({strongest:+.3f})"]
    lines += ["".join(f"{share:5d}" for share in row) for row in shares]
    if explanation.whole_image is not None:
        lines.append(f"the picture as a whole: {explanation.whole_image:+.3f}")
    return lines
