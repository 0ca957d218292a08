#!/bin/sh
# Run in a new machine by scripts/deb.sh: install the package, use it, remove it, and look at what is left.
set -eu
package=$1
export DEBIAN_FRONTEND=noninteractive

fail() {
    echo "deb: $*" >&2
    exit 1
}

printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -qq update
apt-get -qq -y --no-install-recommends install "$package" systemd qemu-utils >/dev/null
before=$(mktemp)
dpkg -L astore | sort >"$before"

cd /
astore --version
mkdir -p /srv/images
echo "<pool type='dir'><name>images</name><target><path>/srv/images</path></target></pool>" >/tmp/images.xml
astore pool define /tmp/images.xml
astore pool autostart images
[ -e /etc/systemd/system/multi-user.target.wants/astore-autostart.service ] || fail "the service is not enabled"
systemd-analyze verify astore-autostart.service
# what the service runs
eval "$(sed -n 's/^ExecStart=//p' /lib/systemd/system/astore-autostart.service)"
astore vol create images a.qcow2 1G --format qcow2
astore vol list images
astore backend list
for type in dir gluster iscsi-direct netfs rbd; do
    astore backend list --json | grep -q "\"type\": \"$type\"" || fail "there is no backend $type"
done
astore pool stop images
COMP_WORDS='astore pool start ' COMP_CWORD=3 _ASTORE_COMPLETE=bash_complete astore | grep -qx plain,images ||
    fail "a stopped pool is no completion of start"
bash -c '. /usr/share/bash-completion/completions/astore && complete -p astore' >/dev/null || fail "bash has no completion"
for file in zsh/vendor-completions/_astore fish/vendor_completions.d/astore.fish man/man1/astore.1.gz man/man1/astore-pool.1.gz; do
    [ -s "/usr/share/$file" ] || fail "there is no /usr/share/$file"
done

apt-get -qq -y remove astore >/dev/null
[ ! -e /usr/lib/astore ] || fail "left: $(find /usr/lib/astore | head)"
[ ! -e /usr/bin/astore ] || fail "the command is still there"
[ -e /var/lib/astore ] || fail "a removal took the definitions"
apt-get -qq -y purge astore >/dev/null
[ ! -e /var/lib/astore ] || fail "a purge left the definitions"
[ -e /srv/images/a.qcow2 ] || fail "a purge took a volume"
[ ! -e /etc/systemd/system/multi-user.target.wants/astore-autostart.service ] || fail "the service is still enabled"
while read -r file; do
    [ -d "$file" ] || [ ! -e "$file" ] || fail "left: $file"
done <"$before"
echo "deb: installed, used, removed and purged"
