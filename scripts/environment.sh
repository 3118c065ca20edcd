# Sourced by demo.sh and test.sh. Leaves $root, the repository, and $python, the Python of its .venv, which holds baal_hf
# with the extra named in the first argument. What is installed already is used as it is, without the network.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# The stamp of an installation: the same versions asked for, in the same place.
asked_for() { (cat "$root/pyproject.toml" "$root/scripts/constraints.txt" && echo "$root") | cksum; }

# `test` has everything that any other extra has.
is_installed() {
    local extra
    for extra in "$1" test; do
        if [ -x "$python" ] && [ "$(cat "$root/.venv/installed-$extra" 2>/dev/null)" = "$(asked_for)" ]; then return 0; fi
    done
    return 1
}

# A finished .venv has pip; one that was killed half-way has not, and is made again over what there is.
make_venv() {
    if "$python" -m pip --version >/dev/null 2>&1; then return 0; fi
    local candidate
    for candidate in python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "Making $root/.venv with $("$candidate" --version)"
            "$candidate" -m venv "$root/.venv"
            return 0
        fi
    done
    echo "baal_hf needs Python 3.10 or newer, and neither python3 nor python on your PATH is. Install one and try again." >&2
    return 1
}

install_extra() {
    rm -f "$root"/.venv/installed-* # a killed installation leaves no stamp
    echo "Installing baal_hf[$1] into $root/.venv: once, some minutes"
    "$python" -m pip install --disable-pip-version-check --editable "$root[$1]" --constraint "$root/scripts/constraints.txt"
    asked_for >"$root/.venv/installed-$1"
}

if ! is_installed "$1"; then
    make_venv
    install_extra "$1"
fi
