#!/usr/bin/env bash
# The whole run of configs/catalogue_fashionbert.py: baselines, towers, FashionBERT on top, figures. Interrupted, it goes on where it was.
#
#     launch/fashionbert.sh [FOLDER] [validation-101.jsonl]
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs}
LISTS=${2:-../shared/data/catalogue/validation-101.jsonl}
mkdir -p "$RUNS"

# 1. Two towers: text and image each alone through one encoder, every text of a batch against every image.
fbjax train --config configs/catalogue_towers.py --workdir "$RUNS/towers"

# 2. FashionBERT from the towers' weights: now text and image see each other, and the towers learn on.
fbjax train --config configs/catalogue_fashionbert.py --workdir "$RUNS/fashionbert" --config.train.start_from="$RUNS/towers"

# 3. Figures of the last checkpoints: the towers, and FashionBERT, also over the towers' nearest in the whole gallery.
fbjax evaluate --workdir "$RUNS/towers" --step 2000 --candidates "$LISTS" --protocol candidates,matching,full \
  --out "$RUNS/towers.json"
fbjax evaluate --workdir "$RUNS/fashionbert" --step 600 --candidates "$LISTS" --protocol candidates,matching,full \
  --towers "$RUNS/towers" --rerank 20 --out "$RUNS/fashionbert.json"

# 4. What a linear model makes of the same features.
for family in cca vse; do
  fbjax baseline $family --config configs/catalogue_towers.py --candidates "$LISTS" --protocol candidates,matching,full \
    --out "$RUNS/$family.json"
done
