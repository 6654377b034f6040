#!/bin/bash
# Runs a config on all hosts of a TPU pod, with one process per host, which JAX finds by itself.
#
#   scripts/launch_tpu_pod.sh my-pod us-central2-b --config configs/tipsomaly.py \
#     --workdir gs://my-bucket/run --config.data_dir=gs://my-bucket/data
#
# Before, copy the repository to all hosts (gcloud compute tpus tpu-vm scp --recurse --worker=all . my-pod:zsad_jax)
# and install it there (--command="pip install -e './zsad_jax[tpu,gcs]'"). Run again to resume.
set -euo pipefail
pod=$1 zone=$2
shift 2
# Quoted once more, for the shells of the hosts, which start in the home directory.
gcloud compute tpus tpu-vm ssh "$pod" --zone="$zone" --worker=all \
  --command="cd zsad_jax && python3 -m zsad_jax.main ${*@Q} --config.distributed=True --config.backbone.dtype=bfloat16"
