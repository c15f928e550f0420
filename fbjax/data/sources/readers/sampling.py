"""A sample of the rows of tables, spread evenly; reads few blocks of large files."""

import itertools
import random
from collections.abc import Iterator, Sequence

from fbjax.data.sources.readers.base import Table
from fbjax.data.sources.readers.hdf5 import Hdf5

SAMPLED_BLOCKS, SAMPLED_BYTES = 16, 2**26  # blocks that are read for a sample, and bytes read of each


def sample_rows(
    tables: Sequence[Table], names: set[str], num: int, total: int
) -> Iterator[tuple[Table, int, dict | str]]:
    """About `num` of `total` rows with their table and number, from 1."""
    place, drawn = 0, _spread(num, total)
    blocked = [table for table in tables if table.blocks() and not isinstance(table, Hdf5)]
    for table in tables:
        if isinstance(table, Hdf5):
            end = place + (table.count() or 0)
            here = sorted(number - place for number in drawn if place <= number < end)
            for number, row in zip(here, table.read_places(names, here), strict=True):
                yield table, number + 1, row
            place = end
        elif table not in blocked:
            for number, row in enumerate(table.rows(names), start=1):
                if place in drawn:
                    yield table, number, row
                place += 1
    blocks = [(table, block) for table in blocked for block in range(len(table.blocks()))]
    blocks = blocks[:: -(-len(blocks) // SAMPLED_BLOCKS) or 1]
    for table, block in blocks:
        lengths, about = table.blocks(), -(-num // len(blocks))
        span = min(lengths[block], max(about, lengths[block] * SAMPLED_BYTES // max(table.block_bytes(block), 1)))
        before, drawn = sum(lengths[:block]), _spread(about, span)
        for place, row in enumerate(itertools.islice(table.read_block(block, names), span)):
            if place in drawn:
                yield table, before + place + 1, row


def _spread(num: int, total: int) -> set[int]:
    """`num` of `total` places, always the same: a random one of each equal stretch, since tables may be periodic."""
    draw, num = random.Random(0), min(num, total)
    return {draw.randrange(i * total // num, (i + 1) * total // num) for i in range(num)}
