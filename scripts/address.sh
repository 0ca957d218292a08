#!/bin/sh
# Print the repository's address, or change it wherever it stands: project URLs, README's links, and the Debian package.
#
#   scripts/address.sh [https://HOST/OWNER/NAME]
#
# ROOT  the checkout (default: this one)
set -eu
cd "${ROOT:-$(dirname "$0")/..}"

old=$(sed -n 's/^Repository = "\(.*\)"$/\1/p' pyproject.toml)
new=${1:-}
case $new in
'') echo "$old" ;;
https://*[!/]) sed -i "s|$old|$new|g" README.md pyproject.toml plugins/*/pyproject.toml debian/control debian/copyright ;;
*) echo "address: $new is not of the form https://HOST/OWNER/NAME" >&2; exit 2 ;;
esac
