#!/usr/bin/env bash
# One process of a run on a cluster in which jax finds the others by itself; the cluster starts it on every host.
#     bash launch/worker.sh tpu --config=configs/medvr_qwen2_5_vl_7b.py --workdir=/shared/runs/7b
# EXTRA is jax's: tpu, cuda13, ….
set -euo pipefail

usage() {
    echo "launch/worker.sh: $1" >&2
    echo "usage: bash launch/worker.sh [--dry-run] EXTRA --config=FILE --workdir=DIR [ARGUMENTS of medvr_jax.main …]" >&2
    exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
[[ "${1:-}" =~ ^[a-z][a-z0-9-]*$ ]] || usage "found '${1:-}', needed is jax's extra for the accelerator, e.g. tpu or cuda13"
extra=$1
shift
[ $# -gt 0 ] || usage "no arguments for medvr_jax.main"

if [ "$dry" ]; then
    echo "install requirements.txt; install_jax $extra"
    echo "MEDVR_PROCESSES=auto .venv/bin/python -m medvr_jax.main${*:+ ${*@Q}}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt
install_jax "$extra"
export MEDVR_PROCESSES=auto
exec .venv/bin/python -m medvr_jax.main "$@"
