# Sourced by the other scripts: goes to the repository root and makes .venv with exact pins. PYTHON names the
# interpreter to use; otherwise the first of python3, python3.11 and python3.12 that is a Python 3.11 or 3.12.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or 3.12 found (tried: ${PYTHON:-python3 python3.11 python3.12}); set PYTHON=/path/to/python" >&2
    return 2
}

# install FILE...: requirement files that .venv does not hold yet, as they are now.
install() {
    if [ ! -x .venv/bin/python ]; then
        local python
        python=$(find_python) || return
        "$python" -m venv .venv || return
    fi
    local file stamp
    for file in "$@"; do
        stamp=".venv/installed-$file"
        if ! cmp -s "$file" "$stamp"; then
            echo "Installing $file into .venv (minutes, the first time) …"
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file" || return
            cp "$file" "$stamp"
        fi
    done
}

# install_jax EXTRA: jax's own extra (tpu, cuda13, …) of the version that requirements.txt pins.
install_jax() {
    local version stamp=".venv/installed-jax-$1"
    version=$(.venv/bin/python -c 'import jax; print(jax.__version__)') || return
    if [ "$(cat "$stamp" 2>/dev/null)" != "$version" ]; then
        echo "Installing jax[$1]==$version into .venv …"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "jax[$1]==$version" || return
        echo "$version" > "$stamp"
    fi
}
