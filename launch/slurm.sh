#!/usr/bin/env bash
# A GPU cluster under SLURM: one process a GPU, and a job that puts itself back into the queue when it is preempted.
#   sbatch --nodes=4 launch/slurm.sh configs/fashiongen_paper.py /shared/runs/paper [--config.field=value ...]
# The workdir and the prepared data have to lie on a file system that all nodes share.
#SBATCH --job-name=fbjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
# (TERM@180: three minutes before the time limit every process is told to stop, and saves the step that it stands at.)
set -euo pipefail
config=${1:?config file} workdir=${2:?workdir on a shared file system}
shift 2

# Records once, by one process. Cached patch features, where the config has them, are made by the first of the training
# processes to come, while the others wait.
srun --nodes=1 --ntasks=1 fbjax prepare --config "$config" "$@"

# JAX reads from SLURM's environment where process 0 is, how many there are, and which GPU is whose. --kill-on-bad-exit
# ends the rest where one dies; 75 says that the step is saved and the job may go on later.
status=0
srun --kill-on-bad-exit=1 fbjax train --config "$config" --workdir "$workdir" --distributed "$@" || status=$?
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
