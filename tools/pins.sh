#!/usr/bin/env bash
# Raises every version in constraints.txt to the newest that fit together; torch stays unless a version is given.
# usage: tools/pins.sh [TORCH_VERSION]      (PYTHON=python3.12 tools/pins.sh to use another Python)
set -euo pipefail
cd "$(dirname "$0")/.."

torch="torch==${1:-$(sed -n 's/^torch==//p' constraints.txt)}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch" constraints.txt.partial' EXIT

echo "resolving every extra beside $torch in a scratch environment, a few minutes"
"${PYTHON:-python3.11}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --quiet --disable-pip-version-check)
echo "$torch" > "$scratch/torch.txt"
"${pip[@]}" install -c "$scratch/torch.txt" --upgrade torch setuptools
"${pip[@]}" install -c "$scratch/torch.txt" --no-build-isolation '.[toolkit,ort,tflite,litert,geo,dev,bench]'

# A local build tag (+cpu) and the GPU libraries torch pins by itself belong to this machine, not to the project.
"${pip[@]}" freeze --all --exclude pip --exclude wheel --exclude highwall \
    | sed 's/+[A-Za-z0-9.]*$//' | grep -Ev '^(nvidia-|cuda-|triton)' > constraints.txt.partial
mv constraints.txt.partial constraints.txt
echo "constraints.txt now pins $(wc -l < constraints.txt) versions; run make test before you commit it"
