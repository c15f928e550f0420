"""Fabricated rows of the release's files: a vocabulary of letters, features that show which colour a text names."""

import numpy as np

from fbjax.data.text.wordpiece import SPECIAL

CLS, SEP, MASK = 2, 3, 4
PIECES = [*SPECIAL, *"abcdefghijklmnop", "##ing", "##ed"]  # ids 5 to 20 are words, 21 and 22 their endings
TOKENS, PATCHES, SIZE = 8, 4, 6
HIDDEN = 2  # masked pieces, and masked patches


def write_vocabulary(path):
    path.write_text("\n".join(PIECES) + "\n")
    return path


def text_of(number):
    """[CLS], two words and an ending, [SEP], [PAD]; `number` says which."""
    pieces = [CLS, 5 + number % 16, 5 + number // 16 % 16, 21, SEP]
    return np.array(pieces + [0] * (TOKENS - len(pieces)), np.int32)


def features_of(number, num_patches=PATCHES, feature_size=SIZE):
    rng = np.random.default_rng(number)
    return rng.normal(0, 1, (num_patches, feature_size)).astype(np.float32)


def training_rows(num_pairs):
    """A true and a mismatched row of each product, a piece of the text masked as the release does."""
    for number in range(num_pairs):
        for label in (1, 0):
            ids = text_of(number)
            ids[1] = MASK
            yield {
                "image_feature": features_of(number if label else number + 1000),
                "image_mask": np.ones(PATCHES, np.int32),
                "masked_patch_positions": np.array([0, 3]),
                "input_ids": ids,
                "input_mask": (ids > 0).astype(np.int32),
                "segment_ids": np.zeros(TOKENS, np.int32),
                "masked_lm_positions": np.array([1, 0]),
                "masked_lm_ids": np.array([text_of(number)[1], 0]),
                "masked_lm_weights": np.array([1.0, 0.0], np.float32),
                "nx_sent_labels": label,
            }


def prediction_rows(num_queries, num_candidates, num_patches=PATCHES, feature_size=SIZE, direction="image_to_text"):
    """Each query's rows one after another, the true one in the middle."""
    for query in range(num_queries):
        for place in range(num_candidates):
            matched = place == num_candidates // 2
            other = query if matched else (query + 1 + place) % 200
            text, image = (other, query) if direction == "image_to_text" else (query, other)
            ids = text_of(text)
            yield {
                "image_feature": features_of(image, num_patches, feature_size),
                "image_mask": np.ones(num_patches, np.int32),
                "input_ids": ids,
                "input_mask": (ids > 0).astype(np.int32),
                "segment_ids": np.zeros(TOKENS, np.int32),
                "nx_sent_labels": int(matched),
                "prod_desc": f"text {text}",
                "text_prod_id": f"t{text}",
                "image_prod_id": f"t{image}",
                "prod_img_id": f"t{image}-1",
            }
