#!/usr/bin/env bash
# Runs medvr_jax on all workers of a TPU pod slice: copies this commit to each, installs the pins there, starts one
# process per host. --workdir (and --config.model.path) must lie in a folder that all workers have mounted.
#     bash launch/tpu_pod.sh my-pod us-east5-a --config=configs/medvr_qwen2_5_vl_7b.py --workdir=/shared/runs/7b
# Started again it resumes. The project is gcloud's current one; GCLOUD_FLAGS are passed on to gcloud.
set -euo pipefail

usage() {
    echo "launch/tpu_pod.sh: $1" >&2
    echo "usage: bash launch/tpu_pod.sh [--dry-run] TPU ZONE --config=FILE --workdir=DIR [ARGUMENTS of medvr_jax.main …]" >&2
    exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
for name in TPU ZONE; do
    [[ "${1:-}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || usage "found '${1:-}', needed is the $name"
    declare "${name,,}=$1"
    shift
done
[ $# -gt 0 ] || usage "no arguments for medvr_jax.main"

run() {
    if [ "$dry" ]; then
        echo "${*@Q}"
    else
        "$@"
    fi
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
archive=/tmp/medvr_jax.tar.gz
read -ra where <<< "$tpu --zone=$zone --worker=all ${GCLOUD_FLAGS:-}"
run git archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "${where[0]}:$archive" "${where[@]:1}"
run gcloud compute tpus tpu-vm ssh "${where[@]}" \
    --command="mkdir -p medvr_jax && tar -xzf $archive -C medvr_jax && bash medvr_jax/launch/worker.sh tpu ${*@Q}"
