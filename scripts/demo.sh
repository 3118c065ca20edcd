#!/usr/bin/env bash
# The main job: a real transformer chooses which BBC News documents to label, learns from them, and is compared with a
# random choice. Sets up .venv the first time. Arguments are passed on to scripts/run_active_learning.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" demo

# Settings for two processor cores and a few minutes: texts cut to 64 tokens, 200 random rows of the pool scored a round.
exec "$python" "$root/scripts/run_active_learning.py" --compare random --output_dir "$root/outputs/demo" \
    --max_length 64 --pool_sample 200 --iterations 10 --query_size 15 --rounds 5 "$@"
