#!/usr/bin/env bash
# Every check, stopping at the first that fails. Sets up .venv the first time. Arguments are passed on to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
cd "$root"

check() {
    echo "+ $*"
    "$python" -m "$@"
}

check ruff check
check ruff format --check
check mypy --strict baal_hf
check pytest "$@"
