#!/usr/bin/env bash
# Make .venv and install the project into it:   scripts/install.sh base|dev      (make calls this)
#
# On Linux, pip's default torch is the CUDA build: gigabytes that a machine without an NVIDIA GPU cannot use. So
# there we first ask pip what it would take. If that holds CUDA packages, PyTorch's own CPU index is added; if
# they are still there (no way to that index), we stop and say so instead of filling the disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    base) target="." ;;
    dev) target=".[dev]" ;;
    *) echo "usage: scripts/install.sh base|dev" >&2; exit 2 ;;
esac

python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "geoloc needs Python 3.10 or newer, but '$python' is $("$python" --version 2>/dev/null || echo missing);" \
         "name another one: make PYTHON=python3.12 …" >&2
    exit 1
fi
[ -e .venv/.installed-base ] || "$python" -m venv .venv  # run again, it mends one that was cut off
pip=(.venv/bin/python -m pip --disable-pip-version-check)

cpu_index=()
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && [ -z "${GEOLOC_ALLOW_CUDA:-}" ]; then
    # From 23.3 on, a dry run reads the wheels' metadata only; an older one would download them.
    "${pip[@]}" install -qq 'pip>=23.3'

    takes_cuda() {  # true if pip would install CUDA packages, given these further options
        local report
        report=$("${pip[@]}" install -qq --dry-run --ignore-installed --report - "$@" \
            -c constraints-ci.txt torch torchvision) || return 0
        grep -qE '"name": "(nvidia|cuda|triton)' <<<"$report"
    }

    if takes_cuda; then
        cpu_wheels=https://download.pytorch.org/whl/cpu
        cpu_index=(--extra-index-url "$cpu_wheels")
        # One request tells whether the index answers; then 2.13.0+cpu sorts above 2.13.0, and pip takes it.
        if ! "${pip[@]}" install -qq --dry-run --ignore-installed --no-deps --retries 0 \
            --index-url "$cpu_wheels" -c constraints-ci.txt torch 2>/dev/null || takes_cuda "${cpu_index[@]}"; then
            echo "No NVIDIA GPU here, but pip would install CUDA packages (gigabytes), and PyTorch's CPU index" \
                 "has not helped: is $cpu_wheels reachable? Else point pip at a CPU wheel of torch" \
                 "(pip config set global.find-links FOLDER), or accept the CUDA build:" \
                 "GEOLOC_ALLOW_CUDA=1 make …" >&2
            exit 1
        fi
    fi
fi

echo "Installing $target into .venv (a few minutes the first time) …"
"${pip[@]}" install -qq -e "$target" -c constraints-ci.txt ${cpu_index[@]+"${cpu_index[@]}"}
touch .venv/.installed-base
[ "$1" = base ] || touch .venv/.installed-dev
