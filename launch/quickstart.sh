#!/usr/bin/env bash
# Trains the tiny policy on this machine's CPU, evaluates and exports it, and writes runs/tiny/report/index.html.
# Works on a fresh clone; started again, it resumes. Further arguments go to the run, later ones win:
#     bash launch/quickstart.sh --config=configs/tiny_cpu.py:zoom --workdir=runs/zoom
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt

# malloc keeps its memory instead of giving it back after each step; page faults were a third of a step.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=268435456
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec .venv/bin/python -m medvr_jax.main --config=configs/tiny_cpu.py --workdir=runs/tiny "$@"
