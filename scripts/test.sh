#!/bin/sh
# Everything that must hold: style, types, tests with coverage. Arguments go to pytest: scripts/test.sh -k gluster
#
# VENV  the virtual environment's folder (default: .venv), made by scripts/setup.sh test
set -eu
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
export PYTHONNOUSERSITE=1

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" --strict

if [ $# -gt 0 ]; then
    exec "$bin/python" -m pytest --durations=15 "$@"
fi
set -- --durations=15 --cov=astore --cov-branch --cov-report=term-missing:skip-covered
# An ordinary user cannot mount: what is skipped for that is not covered either.
if [ "$(id -u)" = 0 ]; then set -- "$@" --cov-fail-under=95; fi
exec "$bin/python" -m pytest "$@"
