#!/usr/bin/env bash
# configs/fashiongen_paper.py made small, on drawn garments written as Fashion-Gen's own two HDF5 files: shows that this
# way works from end to end, minutes on two cores. Run again, it goes on where it was. Its figures: docs/guides/fashion-gen.md.
#
#     launch/fashiongen_small.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/fashiongen_small}
SEED=${SEED:-0}

# 1. The two files, where a real one would lie: in data.manual_dir. A garment is a product of one to three photos.
fbjax draw --out "$OUT/manual" --products "${PRODUCTS:-4000}" --seed 1 --format h5

# 2. What prepare understands of them.
fbjax prepare --check "$OUT/manual/fashiongen_256_256_train.h5"

# 3. The paper's config but for size: raw pixels for ResNeXt-101, two narrow layers from random weights for BERT-base, and
#    what these want: rate, schedule, no dropout, fixed task weights, easy partners to begin with (configs/quickstart_fashionbert.py).
fbjax train --config configs/fashiongen_paper.py --workdir "$OUT/run" \
  --config.data.manual_dir="$OUT/manual" --config.data.prepared="$OUT/prepared" \
  --config.patches.network=pixels --config.patches.image_size=96 --config.patches.patch_size=24 \
  --config.patches.patch_input_size=24 --config.patches.mode=frozen --config.model.pretrained= --config.model.vocabulary=train:1000 \
  --config.model.num_layers=2 --config.model.width=128 --config.model.num_heads=4 --config.model.mlp_dim=512 \
  --config.model.initializer_range=0.06 --config.model.text_tokens=40 --config.model.hidden_dropout=0 \
  --config.model.attention_dropout=0 --config.tasks.mlm.on_negatives=false \
  --config.tasks.mpm.on_negatives=false --config.tasks.tia.random_negatives_start=1 \
  --config.tasks.tia.random_negatives_steps=1500 --config.adaptive.method=fixed \
  --config.tasks.mlm.weight=0.2 --config.tasks.mpm.weight=0.1 --config.tasks.tia.weight=0.7 \
  --config.train.batch_size=16 --config.train.micro_batches=1 --config.train.num_steps="${STEPS:-5000}" \
  --config.train.warmup_steps=250 --config.train.learning_rate=8e-4 --config.train.beta1=0.9 \
  --config.train.weight_decay=0.01 --config.train.save_every=1000 --config.train.log_every=200 \
  --config.train.evaluate_products=500 --config.train.seed="$SEED"

# 4. 1 + 100 candidates of the same sub-category, and matching; the second file by its name, as any table is named.
fbjax evaluate --workdir "$OUT/run" --queries 300 --data fashiongen:validation --out "$OUT/metrics.json"
