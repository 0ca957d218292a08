#!/bin/sh
# Everything that must hold: style, types, imports, tests with coverage. Arguments go to pytest: scripts/test.sh -k gluster
#
# VENV  the virtual environment's folder (default: .venv), made by scripts/setup.sh test
set -eu
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
export PYTHONNOUSERSITE=1

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" --strict
"$bin/lint-imports" --no-logo --no-cache

if [ $# -gt 0 ]; then
    exec "$bin/python" -m pytest --durations=15 "$@"
fi

# Most tests wait for servers and programs most of the time, so two halves run side by side, each in namespaces of its own.
on_storage="conformance drills gluster iscsi netfs testbeds volumes"
half() {  # half NAME PYTEST_ARGUMENT…
    name=$1
    shift
    COVERAGE_FILE=.coverage.half-$name "$bin/python" -m pytest --durations=15 -o cache_dir=".pytest_cache/$name" \
        --cov=astore --cov-branch --cov-report= "$@"
}
work=$(mktemp -d)
rest=
trap 'rm -rf "$work"' EXIT
trap 'kill -INT $rest; wait; exit 130' INT TERM
rm -f .coverage .coverage.*
half rest $(printf -- '--ignore=tests/%s ' $on_storage) >"$work/rest" 2>&1 &
rest=$!
failed=0
half storage $(printf 'tests/%s ' $on_storage) || failed=$?
wait "$rest" || failed=$?
cat "$work/rest"
"$bin/python" -m coverage combine -q
# An ordinary user cannot mount: what is skipped for that is not covered either.
if [ "$(id -u)" = 0 ]; then set -- --fail-under=95; fi
"$bin/python" -m coverage report --show-missing --skip-covered "$@" || failed=$?
exit "$failed"
