#!/usr/bin/env bash
# What retrieves best on a catalogue, from the table to the figures: the linear models to beat, the recipe, and an
# encoder beside it. Interrupted, it goes on where it was.
#
#     launch/catalogue.sh [FOLDER] [validation-101.jsonl]
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs}
LISTS=${2:-../shared/data/catalogue/validation-101.jsonl}
PROTOCOLS=candidates,matching,full
mkdir -p "$RUNS"

# 1. The linear models on frozen features: VSE of the paper, and n-grams, which is a run and stays.
fbjax baseline vse --config configs/catalogue_towers.py --workdir "$RUNS/vse" --candidates "$LISTS" \
  --protocol $PROTOCOLS --out "$RUNS/vse.json"
fbjax baseline ngrams --config configs/catalogue_towers.py --workdir "$RUNS/ngrams" --candidates "$LISTS" \
  --protocol $PROTOCOLS --out "$RUNS/ngrams.json"

# 2. N-grams on better features.
fbjax train --config configs/catalogue.py --workdir "$RUNS/catalogue"
fbjax evaluate --workdir "$RUNS/catalogue" --candidates "$LISTS" --protocol $PROTOCOLS --out "$RUNS/catalogue.json"

# 3. FashionBERT's encoder beside it, on what such towers lack on products that they have not seen.
fbjax train --config configs/catalogue.py --workdir "$RUNS/first" --config.train.half=first --config.train.num_steps=250
fbjax train --config configs/catalogue_encoder.py --workdir "$RUNS/encoder"
fbjax train --config configs/catalogue_stacked.py --workdir "$RUNS/stacked" --config.tasks.itc.towers="$RUNS/first" \
  --config.train.start_from="$RUNS/encoder+$RUNS/catalogue"
fbjax evaluate --workdir "$RUNS/stacked" --candidates "$LISTS" --protocol $PROTOCOLS --out "$RUNS/stacked.json"

# 4. Is the difference more than chance? Paired by query, over the lists and the whole gallery.
fbjax compare "$RUNS/vse" "$RUNS/catalogue"
fbjax compare "$RUNS/ngrams" "$RUNS/catalogue"
fbjax compare "$RUNS/catalogue" "$RUNS/stacked"
