#!/bin/sh
# Measures on one NVIDIA GPU, in at most ten minutes:
#
#     sh benchmarks/device.sh [FOLDER]
#
# 1. tests/accel: parity, and three steps of each method, to FOLDER/parity.txt
# 2. the rows `device` of the benchmark, to FOLDER/device.json (see docs/benchmarks.md)
#
# A second start skips what FOLDER has (runs/device, if it is not given). It needs the
# extras cuda, test and bench, and a torch with CUDA: in the same environment, or in
# another one with transformers and peft, whose Python is TORCH_PYTHON.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-runs/device}
python=${PYTHON:-python}
# the processes of both sides share the memory of the GPU
export XLA_PYTHON_CLIENT_PREALLOCATE=false

"$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' || {
    echo "device.sh: JAX finds no GPU; run it where \`hypelora doctor\` lists one" >&2
    exit 2
}
mkdir -p "$folder"
if [ ! -e "$folder/parity.txt" ]; then
    timeout 180 "$python" -m pytest -s tests/accel >"$folder/parity.part" 2>&1 || {
        tail -n 20 "$folder/parity.part" >&2
        exit 1
    }
    mv "$folder/parity.part" "$folder/parity.txt"
fi
tail -n 1 "$folder/parity.txt"
timeout 400 "$python" -m benchmarks --only=device --device=gpu \
    --json="$folder/device.json" --resume
