#!/bin/sh
# Build the Debian package of this checkout's HEAD, and try it: install it on a new minimal Debian 12, use it, and remove it.
#
# DEB  the folder (default: build/deb). As root; it installs the tools that are missing, and takes wheels from the package index.
set -eu
cd "$(dirname "$0")/.."

DEB=${DEB:-build/deb}
python=${VENV:-.venv}/bin/python
say() { echo "deb: $*"; }

[ "$(id -u)" = 0 ] || { echo "deb: it needs root" >&2; exit 1; }
rm -rf --one-file-system "$DEB"
mkdir -p "$DEB/source/wheels"
DEB=$(cd "$DEB" && pwd -P)
git archive HEAD | tar -x -C "$DEB/source"
rm -rf "$DEB/source/.ci" "$DEB/source/.github"

say "wheels of astore, its plugins, and all that they import"
abi=$(/usr/bin/python3 -c 'import sys; print("%d%d" % sys.version_info[:2])')
for package in . plugins/fleet plugins/gluster plugins/iscsi plugins/netfs plugins/rbd; do
    (cd "$DEB/source/$package" && "$OLDPWD/$python" -m hatchling build -t wheel -d "$DEB/source/wheels") >/dev/null 2>&1
done
"$python" -m pip wheel -q --disable-pip-version-check --no-deps -w "$DEB/source/wheels" "$(grep '^gfapi==' constraints.txt)"
"$python" -m pip download -q --disable-pip-version-check -d "$DEB/source/wheels" -c constraints.txt \
    --find-links "$DEB/source/wheels" --only-binary :all: --python-version "$abi" --implementation cp --abi "cp$abi" --abi abi3 \
    --abi none $(for old in 36 35 34 31 28 17; do echo --platform "manylinux_2_${old}_$(uname -m)"; done) \
    --platform "manylinux2014_$(uname -m)" 'astore[cli,fleet,gluster,iscsi,netfs,rbd]'

say "dpkg-buildpackage"
(cd "$DEB/source" && dpkg-buildpackage -us -uc -b >"$DEB/build.log" 2>&1) || { tail -n 40 "$DEB/build.log" >&2; exit 1; }
package=$(echo "$DEB"/astore_*.deb)
lintian --allow-root --fail-on error "$package"

say "a new machine: install, use, remove, purge"
FRESH=$DEB/fresh COMMAND=true scripts/fresh.sh
mkdir "$DEB/fresh/root/try"
cp "$package" scripts/deb-try.sh "$DEB/fresh/root/try/"
FRESH=$DEB/fresh REUSE=yes COMMAND='sh /try/deb-try.sh /try/astore_*.deb' scripts/fresh.sh
FRESH=$DEB/fresh scripts/fresh.sh remove
say "$package works"
