#!/bin/bash
# Runs all benchmarks and writes their results as JSON; docs/performance.md explains them.
#
#     scripts/benchmark_all.sh OUT                                  # NVIDIA GPU: L/14 at 518 pixels in bfloat16
#     scripts/benchmark_all.sh OUT --backbone tips-s14-hr           # CPU: options of the model replace the defaults
#
# BATCH, IMAGES (files of inference), TRAIN_IMAGES, MAPS, MUSC_IMAGES and RUNS replace further defaults.
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/benchmark_all.sh OUT [--backbone NAME] [--image_size N] [--dtype TYPE]}")
mkdir -p "$out"
model=("${@:2}")
[ $# -gt 1 ] || model=(--backbone tips-l14-hr --dtype bfloat16)
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD

python scripts/benchmark_inference.py "${model[@]}" --batch_size "${BATCH:-32}" \
  --images "${IMAGES:-128}" --runs "${RUNS:-20}" --latencies $((10 * ${RUNS:-20})) --json "$out/inference.json"
python scripts/benchmark_inference.py --method winclip --backbone clip-vit-b16-plus-240 --image_size 240 \
  --batch_size 8 --images 8 --stages products heads --json "$out/winclip.json"
# The auxiliary set of the published training: 1,725 images in two epochs.
python scripts/benchmark_training.py "${model[@]}" --images "${TRAIN_IMAGES:-1725}" --epochs 2 \
  --parts cache --json "$out/training.json"
python scripts/benchmark_metrics.py --maps "${MAPS:-1000}" --json "$out/metrics.json"
python scripts/benchmark_grid.py --json "$out/grid.json"
python scripts/benchmark_musc.py --images "${MUSC_IMAGES:-200}" --json "$out/musc.json"
