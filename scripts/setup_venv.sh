#!/bin/sh
# Make or update a virtual environment with this project in it.
#   sh scripts/setup_venv.sh FOLDER [EXTRA]
# The interpreter is the first of $PYTHON, python3.12, python3.11, python3 that starts and is >= 3.11.
set -eu
venv=$1
extra=${2:-}

is_usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3; do
        if is_usable "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "no Python >= 3.11 found; install one or set PYTHON=/path/to/python" >&2
    exit 1
}

python=$(find_python)
if [ -n "${PYTHON:-}" ] && ! is_usable "$PYTHON"; then
    echo "PYTHON=$PYTHON is no Python >= 3.11; taking $python" >&2
fi
# Also one whose interpreter is gone, as after an upgrade of the system's.
if [ -e "$venv/pyvenv.cfg" ] && ! is_usable "$venv/bin/python"; then
    rm -rf "$venv"
fi
requirement=.${extra:+"[$extra]"}
if command -v uv >/dev/null 2>&1; then
    [ -x "$venv/bin/python" ] || uv venv --quiet --no-python-downloads --python "$python" "$venv"
    uv pip install --quiet --python "$venv/bin/python" -e "$requirement"
else
    # Without pip where the making of it was interrupted; made again it gets pip and keeps the rest.
    "$venv/bin/python" -c 'import pip' >/dev/null 2>&1 || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$requirement"
fi
# An editable install is not compiled as other packages are: the first command need not wait for it.
"$venv/bin/python" -m compileall -q moe_weights
