#!/usr/bin/env bash
# Runs medvr_jax as N processes on this machine's CPU, which find each other by themselves. mesh.host_devices is what
# each of them has: 2 processes with 4 devices share a run as one process with 8 does.
#     bash launch/processes.sh 2 --config=configs/tiny_cpu.py --workdir=runs/two --config.mesh.host_devices=4
# When one process fails the others are ended; the exit status is that of the first that failed.
set -uo pipefail

usage() {
    echo "launch/processes.sh: $1" >&2
    echo "usage: bash launch/processes.sh [--dry-run] N --config=FILE --workdir=DIR [ARGUMENTS of medvr_jax.main …]" >&2
    exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || usage "found '${1:-}', needed is a number of processes"
count=$1
shift
[ $# -gt 0 ] || usage "no arguments for medvr_jax.main"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" MEDVR_PROCESSES=$count

if [ "$dry" ]; then
    for ((number = 0; number < count; number++)); do
        echo "MEDVR_PROCESSES=$count MEDVR_PROCESS_ID=$number MEDVR_COORDINATOR=localhost:<free port>" \
            "JAX_PLATFORMS=$JAX_PLATFORMS .venv/bin/python -m medvr_jax.main${*:+ ${*@Q}} &"
    done
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt || exit
port=$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') || exit
export MEDVR_COORDINATOR=localhost:$port

pids=()
end_all() {
    kill "${pids[@]}" 2>/dev/null
    for _ in {1..50}; do
        kill -0 "${pids[@]}" 2>/dev/null || return
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null
}
trap 'end_all; exit 130' INT
trap 'end_all; exit 143' TERM

for ((number = 0; number < count; number++)); do
    MEDVR_PROCESS_ID=$number .venv/bin/python -m medvr_jax.main "$@" &
    pids+=($!)
done
status=0
for ((ended = 0; ended < count; ended++)); do
    wait -n
    found=$?
    if [ "$found" -ne 0 ] && [ "$status" -eq 0 ]; then
        status=$found
        # The others may be about to fail in the same way: they get a moment to say so.
        sleep 1
        end_all
    fi
done
exit "$status"
