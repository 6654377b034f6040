#!/bin/bash
#SBATCH --job-name=zsad_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4   # one process per GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8     # they decode images
#SBATCH --time=04:00:00
# Runs a config on the GPUs of a Slurm cluster. JAX takes the number of processes and the address of the first
# from Slurm.
#
#   sbatch scripts/launch_slurm.sh --config configs/tipsomaly.py --workdir /shared/run
#
# The folders of the data, the weights (ZSAD_JAX_HOME) and the results are on a disk that all nodes share. Submit
# again to resume.
set -euo pipefail
# Ends the job when one process is lost.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  python -m zsad_jax.main "$@" --config.distributed=True --config.backbone.dtype=bfloat16
