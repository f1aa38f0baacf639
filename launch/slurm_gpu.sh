#!/usr/bin/env bash
# Submits a run on GPUs to SLURM, one process per GPU. Run it on a login node, in a clone that the nodes share.
#     bash launch/slurm_gpu.sh 2 8 --config=configs/medvr_qwen2_5_vl_7b.py --workdir=runs/7b
# Submitted again it resumes. SBATCH_FLAGS are passed on to sbatch (account, partition, time); JAX_EXTRA is cuda13.
set -euo pipefail

usage() {
    echo "launch/slurm_gpu.sh: $1" >&2
    echo "usage: bash launch/slurm_gpu.sh [--dry-run] NODES GPUS_PER_NODE --config=FILE --workdir=DIR [ARGUMENTS …]" >&2
    exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
for name in NODES GPUS_PER_NODE; do
    [[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || usage "found '${1:-}', needed is the number $name"
    declare "${name,,}=$1"
    shift
done
[ $# -gt 0 ] || usage "no arguments for medvr_jax.main"

# Every task sees all GPUs of its node; jax takes the one of the task's local number.
read -ra more <<< "${SBATCH_FLAGS:-}"
flags=(--job-name=medvr_jax --nodes="$nodes" --ntasks-per-node="$gpus_per_node" --gpus-per-node="$gpus_per_node"
    --requeue --open-mode=append "${more[@]}")
batch="#!/usr/bin/env bash
export MEDVR_PROCESSES=auto
srun --kill-on-bad-exit=1 .venv/bin/python -m medvr_jax.main ${*@Q}"
extra=${JAX_EXTRA:-cuda13}

if [ "$dry" ]; then
    echo "install requirements.txt; install_jax $extra"
    echo "sbatch ${flags[*]@Q} <<'batch'"
    printf '%s\nbatch\n' "$batch"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt
install_jax "$extra"
sbatch "${flags[@]}" <<< "$batch"
