#!/usr/bin/env bash
# Installs what the tests need, checks the style, runs the tests. Arguments go to pytest: bash launch/test.sh -k rope
# The exit status is pytest's, or ruff's where the tests pass and the style does not.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt requirements-extras.txt requirements-test.txt || exit

# The viewer's tests drive a browser; where there is none, and none can be had soon, they are skipped.
# Only a machine made for tests (CI=true) is given a package of the system.
from_debian() {
    [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && timeout 120 apt-get update &&
        timeout 300 apt-get install -y --no-install-recommends chromium
}
if ! command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then
    { from_debian || timeout 120 .venv/bin/python -m playwright install --only-shell chromium; } >/dev/null 2>&1 ||
        echo "No browser was found or could be installed: tests of the viewer in one are skipped." >&2
fi

.venv/bin/ruff check .
style=$?

# Two workers with one thread each: more would only compete for the cores. Most of the time goes into compiling programs
# that run once: they are compiled without most optimisations, and without XLA's slower emitters of fusions on a CPU (two
# fifths of the time of a file on models), which changes results by rounding alone. A test that hangs fails alone, and
# says where it stood.
export JAX_DISABLE_MOST_OPTIMIZATIONS="${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}"
export JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false --xla_cpu_use_fusion_emitters=false ${XLA_FLAGS:-}"
.venv/bin/python -m pytest -q -n 2 --dist loadfile --timeout=1200 "$@"
tests=$?
[ "$tests" -ne 0 ] && exit "$tests"
exit "$style"
