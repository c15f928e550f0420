#!/usr/bin/env bash
# All that is measured on one GPU, in one command that ends inside its time: BERT-base beside PyTorch, the adaptive
# methods, memory, the tests, the recipe with a trained patch network, where the time goes, and a short training.
#
#     launch/gpu.sh OUT [SECONDS] [--config.field=value ..]
#
# It needs JAX, Flax, Optax, NumPy and this checkout; no TensorFlow, no network. It says what else is missing: PyTorch
# and transformers to compare with, pytest, orbax-checkpoint, tokenizers, ml_collections. Wheels in the folder wheels/
# are installed first. OUT gets a JSON file and a log of each part. A --config flag changes the benchmark of BERT-base.
#
# The training reads arrays from $ARRAYS (default: gpu-arrays). Where the tables are, these commands make them, 50 MB:
#
#     fbjax draw --out quickstart/drawn --products 6000 --seed 1
#     fbjax prepare --config configs/quickstart_fashionbert.py --config.patches.image_size=48 --arrays gpu-arrays
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?launch/gpu.sh OUT [SECONDS] [--config.field=value ..]} TOTAL=${2:-600}
shift $(($# < 2 ? $# : 2))
ARRAYS=${ARRAYS:-gpu-arrays} PYTHON=${PYTHON:-python3}
RESERVE=5 # seconds to end a part in
mkdir -p "$OUT"
: > "$OUT/parts.tsv"

# part NAME SHARE COMMAND ..: runs the command for at most SHARE per cent of the whole time. The word BUDGET in it
# becomes the seconds that it has.
part() {
  local name=$1 most=$(($2 * TOTAL / 100)) left=$((TOTAL - SECONDS - RESERVE)) begin=$SECONDS code
  shift 2
  ((most < left)) || most=$left
  if ((most < 3 * RESERVE)); then
    printf '\n[%d s] %s: left out, as no time is left\n' $SECONDS "$name"
    printf '%s\tleft out\t0\n' "$name" >> "$OUT/parts.tsv"
    return
  fi
  printf '\n[%d s] %s, at most %d s\n' $SECONDS "$name" $most
  timeout -k $RESERVE $most "${@//BUDGET/$((most - RESERVE))}" 2>&1 | tee "$OUT/$name.log"
  code=${PIPESTATUS[0]}
  printf '%s\t%s\t%d\n' "$name" "$( ((code)) && echo "exit $code" || echo done)" $((SECONDS - begin)) >> "$OUT/parts.tsv"
}

if [ -d wheels ]; then "$PYTHON" -m pip install -q --no-index --no-deps wheels/*.whl; fi
"$PYTHON" - "$OUT/machine.json" <<'MACHINE'
import importlib.metadata
import json
import sys

import jax

found = {}
for name in "jax jaxlib flax optax numpy ml_collections orbax-checkpoint tokenizers transformers torch pytest".split():
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
missing = [name for name, version in found.items() if version is None]
json.dump({"device": device, "versions": found, "missing": missing}, open(sys.argv[1], "w"), indent=2)
print(device, *(f"{name} {version}" for name, version in found.items() if version), sep=", ")
print("missing:", ", ".join(missing) or "nothing")
MACHINE

BENCH=("$PYTHON" -m fbjax bench --repeats 5 --budget BUDGET)
STAGES=step,adaptive,score COMPARE=()
if "$PYTHON" -c 'import torch, transformers' 2> /dev/null; then STAGES+=,torch COMPARE=(--compare torch); fi

part bert_base 45 "${BENCH[@]}" --config bert_base --out "$OUT/bert_base.json" --only $STAGES "${COMPARE[@]}" "$@"
part tests 15 "$PYTHON" -m pytest --noconftest -q -p no:cacheprovider tests/gpu
part trained_network 15 "${BENCH[@]}" --config catalogue_gpu --out "$OUT/trained_network.json" --only step,patches
part flash 10 "${BENCH[@]}" --config bert_base --out "$OUT/flash.json" --only step --config.model.attention=cudnn "$@"
part trace 10 "${BENCH[@]}" --config bert_base --out "$OUT/trace.json" --only step --trace "$OUT/profile" "$@"
if [ -d "$ARRAYS" ]; then
  part training 20 "$PYTHON" -m fbjax train --config quickstart_fashionbert --workdir "$OUT/run" \
    --config.patches.image_size=48 --config.patches.patch_size=12 --config.patches.patch_input_size=12 \
    --config.patches.mode=frozen --config.data.arrays="$ARRAYS" --config.data.on_device=true \
    --config.train.save_every=500
fi
rm -rf "$OUT/profile"
printf '\n[%d s] done: %s\n' $SECONDS "$OUT"
cat "$OUT/parts.tsv"
