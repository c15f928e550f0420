"""The linear branch of FashionBERT's towers in PyTorch: a bag of n-grams for a text, patch features side by side.

Hashes, vocabulary and weights are those of `fbjax.model.ngrams` and `fbjax.model.linear`, where they are explained.
"""

import torch
from torch import nn

FACTORS = (
    1505919583,
    588245967,
    47830817,
    -988758535,
    -825366343,
    -1971503703,
    -1824329699,
    -2076497993,
    -1394716357,
    1345485433,
)
IN_BUCKET = 8
SMALLEST_ROOT = 1e-2


class Ngrams(nn.Module):
    """The vocabulary of n-grams: ``ids [B, T] -> rows [B, G], weights [B, G]``, weight 0 where there is none.

    G is 2 T, or `most`.
    """

    def __init__(self, config):
        super().__init__()
        num_codes, num_buckets = config.ngrams["codes"], config.ngrams["buckets"]
        self.most = config.max_position_embeddings
        for name in ("continues", "stop_word", "left_out"):
            self.register_buffer(name, torch.zeros(config.vocab_size, dtype=torch.bool))
        self.register_buffer("codes", torch.zeros(num_codes, dtype=torch.int32))
        self.register_buffer("idf", torch.zeros(num_codes))
        self.register_buffer("first", torch.zeros(num_buckets + 1, dtype=torch.int32))

    def forward(self, ids):
        rows, known = self._find(self._codes(ids))
        weights = torch.where(known, self.idf[rows], 0.0)
        rows, weights = (_packed(known, x)[:, : self.most] for x in (rows, weights))
        return rows, weights * torch.rsqrt(weights.square().sum(dim=1, keepdim=True) + 1e-12)

    def _codes(self, ids):
        number, continues = ids.int() + 1, self.continues[ids]
        word, inside = number * FACTORS[0], torch.ones_like(continues)
        for back in range(1, len(FACTORS) - 2):
            inside = inside & _shifted(continues, back - 1)
            word = word + torch.where(inside, _shifted(number, back) * FACTORS[back], 0)
        kept = ~_shifted(continues, -1) & ~(self.stop_word[ids] & ~continues) & ~self.left_out[ids]
        words = _packed(kept, word)
        following = _shifted(words, -1)
        pairs = words * FACTORS[-2] + following * FACTORS[-1]
        return torch.cat([words, torch.where((words != 0) & (following != 0), pairs, 0)], dim=1)

    def _find(self, wanted):
        bits = (len(self.first) - 1).bit_length() - 1
        start = self.first[(wanted >> (32 - bits)) + 2 ** (bits - 1)].long()
        row, known = start, torch.zeros_like(wanted, dtype=torch.bool)
        for place in range(IN_BUCKET):
            at = (start + place).clamp(max=len(self.codes) - 1)
            found = self.codes[at] == wanted
            row, known = torch.where(found, at, row), known | found
        return row.clamp(max=len(self.codes) - 1), known & (wanted != 0)


class LinearBranch(nn.Module):
    """Bags and patch features to vectors [B, E], not yet of length 1."""

    def __init__(self, num_rows: int, num_cells: int, size: int):
        super().__init__()
        self.ngrams = nn.Parameter(torch.zeros(num_rows, size))
        self.cells = nn.Parameter(torch.zeros(num_cells, size))
        self.mean = nn.Parameter(torch.zeros(num_cells), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(num_cells), requires_grad=False)

    def text(self, rows, weights):
        return torch.einsum("bg,bge->be", weights, self.ngrams[rows])

    def image(self, features):
        flat = features.flatten(1).float()
        roots = flat * torch.rsqrt(flat.abs() + SMALLEST_ROOT)
        return (roots - self.mean) / self.deviation @ self.cells


def _packed(kept, x):
    """``x [B, T]`` where `kept`, moved to the front, then zeros."""
    place = torch.where(kept, kept.cumsum(dim=1) - 1, x.shape[1])
    return x.new_zeros(len(x), x.shape[1] + 1).scatter(1, place, x)[:, :-1]


def _shifted(x, by: int):
    """``x [B, T]`` moved `by` places to the right, or to the left where negative; zeros come in."""
    gap = x.new_zeros(len(x), abs(by))
    return torch.cat([gap, x], dim=1)[:, : x.shape[1]] if by >= 0 else torch.cat([x, gap], dim=1)[:, -by:]
