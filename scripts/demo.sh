#!/usr/bin/env bash
# The main job: a real transformer chooses which BBC News documents to label, learns from them, and is compared with a
# random choice. Sets up .venv the first time. Arguments are passed on to scripts/run_active_learning.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" demo

exec "$python" "$root/scripts/run_active_learning.py" --compare random --output_dir "$root/outputs/demo" "$@"
