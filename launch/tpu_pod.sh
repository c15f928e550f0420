#!/usr/bin/env bash
# A Cloud TPU slice: the same command on every host of it, which find each other.
#   TPU=my-slice ZONE=us-west4-a launch/tpu_pod.sh configs/fashiongen_paper.py /mnt/shared/runs/paper [--config...]
# The slice is there already (gcloud compute tpus tpu-vm create, or a queued resource); this checkout is copied to its
# hosts. The workdir and the prepared data have to lie on a file system that all hosts mount (Filestore, gcsfuse).
set -euo pipefail
config=${1:?config file} workdir=${2:?workdir on a shared file system}
shift 2
: "${TPU:?name of the slice}" "${ZONE:?its zone}"
on_hosts() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker="$1" --command "$2"; }

# What fits, before anything is paid for: fbjax plan --config .. --topology v5e:4x4

# 1. The code and its environment, with the TPU's runtime, on all hosts.
git archive --format=tar.gz --output=/tmp/fbjax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/fbjax.tar.gz "$TPU:" --zone "$ZONE" --worker=all
on_hosts all "mkdir -p fbjax && tar xzf fbjax.tar.gz -C fbjax && cd fbjax && python3 -m venv .venv &&
    .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"

# 2. Records, once.
flags=$([ $# -eq 0 ] || printf ' %q' "$@")
on_hosts 0 "cd fbjax && .venv/bin/fbjax prepare --config '$config' $flags"

# 3. The run. Hosts that are told to stop (maintenance, a spot slice reclaimed) all save the same step and exit with 75;
# the same command goes on from there, on a slice of another size too.
on_hosts all "cd fbjax && .venv/bin/fbjax train --config '$config' --workdir '$workdir' --distributed $flags"
