#!/usr/bin/env bash
# One machine, all of its devices: a product table becomes a trained and evaluated model.
#   launch/local.sh configs/catalogue.py runs/catalogue [--config.field=value ...]
# Run it again with the same folder after a crash or a kill: every part goes on where it was.
set -euo pipefail
config=${1:?config file} workdir=${2:?workdir}
shift 2

# Tables to records, once: a new table or setting makes new records, an old one is found again.
fbjax prepare --config "$config" "$@"

# The one loop. Ctrl-C or a kill loses at most the steps since the last checkpoint.
fbjax train --config "$config" --workdir "$workdir" "$@"

# Retrieval over 1 + 100 candidates of the same category, and matching, with 95 % intervals.
fbjax evaluate --workdir "$workdir" --queries "${QUERIES:-100}" --out "$workdir/metrics.json"
