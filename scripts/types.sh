#!/bin/sh
# Check the types as users see them: astore and its plugins from wheels in an environment of their own, by pyright.
#
# It takes node and npm (Debian: nodejs and npm), which fetch pyright once, and the package index. PYTHON is an interpreter.
# Everything is in build/types.
set -eu
cd "$(dirname "$0")/.."

PYRIGHT=1.1.414
LEAST=98 # percent of each package's public names whose types are known
root=$PWD
work=$root/build/types
python=$work/env/bin/python
pyright=$work/node_modules/.bin/pyright

mkdir -p "$work"
if [ "$("$pyright" --version 2>/dev/null || true)" != "pyright $PYRIGHT" ]; then
    command -v npm >/dev/null || { echo "types: there is no npm (Debian packages nodejs and npm)" >&2; exit 1; }
    npm install --silent --no-audit --no-fund --prefix "$work" "pyright@$PYRIGHT"
fi
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$work/env"
"$python" -m pip install -q --disable-pip-version-check -c constraints.txt \
    '.[cli,testing]' plugins/fleet plugins/gluster plugins/iscsi plugins/netfs plugins/rbd lxml-stubs hypothesis fastapi
for package in . plugins/fleet plugins/gluster plugins/iscsi plugins/netfs plugins/rbd; do
    "$python" -m pip install -q --disable-pip-version-check --no-deps --force-reinstall "$package"
done

# pyright takes the interpreter of PATH, and a package of the current folder for it
PATH=$work/env/bin:$PATH
export PATH
rm -rf "$work/checked"
mkdir -p "$work/checked"
cp -R examples tests/typing_cases "$work/checked/"
rm -rf "$work/checked/examples/porting/with_libvirt.py" "$work/checked/examples/astore-zip/tests"
cp -R examples/astore-zip/astore_zip "$work/checked/"
"$python" tests/doc_blocks.py "$work/checked"
cd "$work/checked"
"$pyright" --warnings .
few=0
for package in astore astore_fleet astore_gluster astore_iscsi astore_netfs astore_rbd; do
    "$pyright" --ignoreexternal --verifytypes "$package" >"$work/$package.txt" 2>&1 || true
    score=$(sed -n 's/^Type completeness score: \([0-9.]*\)%$/\1/p' "$work/$package.txt")
    score=${score:-0}
    echo "$package: the types of $score % of the public names are known (build/types/$package.txt)"
    if [ "${score%.*}" -lt "$LEAST" ]; then few=1; fi
done
exit "$few"
