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

# Most tests wait for servers and programs most of the time, so four parts run side by side, each in namespaces of its own.
part() {  # part NAME PYTEST_ARGUMENT…
    name=$1
    shift
    COVERAGE_FILE=.coverage.part-$name "$bin/python" -m pytest --durations=15 -o cache_dir=".pytest_cache/$name" \
        --cov=astore --cov-branch --cov-report= "$@"
}
conformance="tests/conformance tests/fleet"
storage="tests/gluster tests/netfs tests/testbeds tests/volumes"
qemu="tests/differential tests/images tests/iscsi tests/made_of tests/rbd"
work=$(mktemp -d)
parts=
trap 'rm -rf "$work"' EXIT
trap 'kill -INT $parts; wait; exit 130' INT TERM
rm -f .coverage .coverage.*
part conformance $conformance >"$work/conformance" 2>&1 &
parts="$parts $!"
part qemu $qemu >"$work/qemu" 2>&1 &
parts="$parts $!"
part rest $(printf -- '--ignore=%s ' $conformance $storage $qemu) >"$work/rest" 2>&1 &
parts="$parts $!"
failed=0
part storage $storage || failed=$?
for pid in $parts; do
    wait "$pid" || failed=$?
done
cat "$work/conformance" "$work/qemu" "$work/rest"
"$bin/python" -m coverage combine -q
# An ordinary user cannot mount: what is skipped for that is not covered either.
if [ "$(id -u)" = 0 ]; then set -- --fail-under=95; fi
"$bin/python" -m coverage report --show-missing --skip-covered "$@" || failed=$?
exit "$failed"
