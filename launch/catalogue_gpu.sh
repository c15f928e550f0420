#!/usr/bin/env bash
# The recipe of configs/catalogue_gpu.py on a machine with JAX alone, FashionBERT on top of it, and their figures.
# Interrupted, it goes on.
# Before, where the tables are: fbjax prepare --config configs/catalogue_gpu.py --arrays arrays
#
#     launch/catalogue_gpu.sh [ARRAYS] [FOLDER] [LISTS.jsonl] [--config.field=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
ARRAYS=${1:-arrays} RUNS=${2:-runs} LISTS=${3:-validation-101.jsonl}
shift $(($# < 3 ? $# : 3))
mkdir -p "$RUNS"

# 1. What is this machine?
python -c 'import jax; print("JAX", jax.__version__, "on", *jax.devices())'

# 2. Train: pictures, texts and index come from the arrays, and nothing imports TensorFlow.
python -m fbjax train --config configs/catalogue_gpu.py --workdir "$RUNS/catalogue_gpu" --config.data.arrays="$ARRAYS" \
  --config.data.on_device=true "$@"

# 3. Figures on the validation split.
python -m fbjax evaluate --workdir "$RUNS/catalogue_gpu" --candidates "$LISTS" --protocol candidates,matching,full \
  --out "$RUNS/catalogue_gpu.json"

# 4. FashionBERT on top: does it put the towers' 20 nearest into a better order?
python -m fbjax train --config configs/catalogue_gpu_fashionbert.py --workdir "$RUNS/gpu_fashionbert" \
  --config.train.start_from="$RUNS/catalogue_gpu" --config.data.arrays="$ARRAYS" --config.data.on_device=true "$@"
python -m fbjax evaluate --workdir "$RUNS/gpu_fashionbert" --candidates "$LISTS" --protocol candidates,matching,full \
  --towers "$RUNS/catalogue_gpu" --rerank 20 --out "$RUNS/gpu_fashionbert.json"
