#!/usr/bin/env bash
# Submits a run on a TPU slice to Google Kubernetes Engine, as the JobSet of launch/gke_jobset.yaml.
#     NAME=medvr-7b IMAGE=REGISTRY/medvr_jax CLAIM=shared ACCELERATOR=tpu-v5p-slice TOPOLOGY=4x4x2 HOSTS=8 CHIPS=4 \
#         bash launch/gke.sh --config=configs/medvr_qwen2_5_vl_7b.py --workdir=/shared/runs/7b
# CHIPS are those of a host; CLAIM is a volume that all hosts can write to, mounted at /shared. The image:
#     FROM python:3.12
#     COPY . /medvr_jax
#     RUN cd /medvr_jax && bash -c 'source launch/environment.sh && install requirements.txt && install_jax tpu'
set -euo pipefail

usage() {
    echo "launch/gke.sh: $1" >&2
    echo "usage: NAME=… IMAGE=… CLAIM=… ACCELERATOR=… TOPOLOGY=… HOSTS=… CHIPS=… bash launch/gke.sh [--dry-run]" \
        "--config=FILE --workdir=DIR [ARGUMENTS of medvr_jax.main …]" >&2
    exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
[ $# -gt 0 ] || usage "no arguments for medvr_jax.main"

text=$(< "$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
text=${text#*$'\n'*$'\n'} # its comment speaks of the template
fill() {
    text=${text//"@$1@"/"$2"}
}
for name in NAME IMAGE CLAIM ACCELERATOR TOPOLOGY; do
    [[ "${!name:-}" =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || usage "$name: found '${!name:-}', needed is a name"
    fill "$name" "${!name}"
done
for name in HOSTS CHIPS; do
    [[ "${!name:-}" =~ ^[1-9][0-9]*$ ]] || usage "$name: found '${!name:-}', needed is a number"
    fill "$name" "${!name}"
done
arguments=
for argument in "$@"; do
    argument=${argument//\\/\\\\}
    arguments+="${arguments:+, }\"${argument//\"/\\\"}\""
done
fill ARGUMENTS "[$arguments]"

if [ "$dry" ]; then
    echo "# kubectl apply -f -, with"
    echo "$text"
    exit 0
fi
kubectl apply -f - <<< "$text"
