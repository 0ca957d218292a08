# Twenty everyday tasks, written for virsh. A test runs this with virsh, and with astore in its place.
export LC_ALL=C EDITOR="sed -i s,/isos,/isos2,"
unset VISUAL
task() { echo "== $*"; }

task 1: make a pool of a folder
mkdir isos2
virsh pool-define-as images dir - - - - "$PWD/images"
virsh pool-build images
virsh pool-start images
virsh pool-autostart images

task 2: make one from a document
cat >isos.xml <<END
<pool type='dir'>
  <name>isos</name>
  <target><path>$PWD/isos</path></target>
</pool>
END
virsh pool-define --file isos.xml --validate

task 3: change it in an editor
virsh pool-edit isos
virsh pool-start isos

task 4: list what there is
virsh pool-list --all
virsh pool-list --inactive --name
virsh pool-list --details --type dir

task 5: look at one pool
virsh pool-info images
virsh pool-info --pool images --bytes | awk '/State|Persistent|Autostart/ { print $2 }'
virsh pool-dumpxml images --xpath '//target/path/text()'
virsh -q pool-uuid images | wc -c
virsh pool-name "$(virsh -q pool-uuid images)"

task 6: make a raw disk and a qcow2 disk
virsh vol-create-as images data.raw 8M --print-xml
virsh vol-create-as images data.raw 8M --allocation 1K --format raw --print-xml
virsh vol-create-as images data.raw 8M
virsh vol-create-as --pool images --name base.qcow2 --capacity 1G --format qcow2 --allocation 0

task 7: make a disk that is backed by another
virsh vol-create-as images web.qcow2 1G --format qcow2 --backing-vol base.qcow2 --backing-vol-format qcow2
qemu-img info --output=json images/web.qcow2 | grep -E '"(backing-filename|virtual-size)"' | sort

task 8: make one from a document
cat >new.xml <<END
<volume>
  <name>new.raw</name>
  <capacity unit='MiB'>2</capacity>
  <allocation>0</allocation>
  <target><permissions><mode>0640</mode></permissions></target>
</volume>
END
virsh vol-create images new.xml

task 9: fill a disk from a file
head -c 1000000 /dev/zero | tr '\0' 'x' >content
virsh vol-upload --vol data.raw --file content --pool images
virsh vol-upload data.raw content images --offset 2097152 --length 1000000

task 10: list the disks of a pool
virsh vol-list images
virsh vol-list images | awk 'NR > 2 && NF { print $1 }'
virsh vol-list --pool images --details

task 11: look at a disk
virsh vol-info data.raw --pool images
virsh vol-info --vol data.raw --pool images --physical
virsh vol-info --pool images --bytes web.qcow2 | grep -v Allocation
virsh vol-dumpxml new.raw images --xpath '//permissions/mode' --wrap
virsh vol-dumpxml new.raw images --xpath '//permissions' --wrap
virsh vol-dumpxml new.raw images --xpath '//capacity/@unit' --wrap
virsh vol-dumpxml new.raw images --xpath '//capacity/text()' --wrap
virsh pool-dumpxml images --xpath '//target | //name' --wrap

task 12: find a disk
virsh vol-path data.raw images
virsh vol-key data.raw --pool images
virsh vol-name "$PWD/images/data.raw"
virsh vol-pool "$PWD/images/data.raw"

task 13: clone a disk
virsh vol-clone --pool images data.raw copy.raw
virsh vol-clone "$PWD/images/base.qcow2" --newname base2.qcow2

task 14: copy a disk to another pool in another format
cat >copy.xml <<END
<volume><name>data.qcow2</name><capacity unit='MiB'>8</capacity><target><format type='qcow2'/></target></volume>
END
virsh vol-create-from isos copy.xml data.raw --inputpool images
qemu-img compare -f raw -F qcow2 images/data.raw isos2/data.qcow2

task 15: make disks larger and smaller
virsh vol-resize data.raw 16M --pool images
virsh vol-resize copy.raw 1M --delta --pool images
virsh vol-resize new.raw 1M images --shrink

task 16: take a copy of a disk out of the pool
virsh vol-download data.raw out --pool images
virsh vol-download --pool images data.raw part --offset 2097152 --length 500000 --sparse
md5sum out part

task 17: find what others put into the folder
truncate -s 3M images/found.raw
virsh pool-refresh images
virsh vol-info found.raw images | head -3

task 18: wipe a disk and delete it
virsh vol-wipe copy.raw images
virsh vol-wipe --vol base2.qcow2 --pool images --algorithm zero >/dev/null 2>&1
cmp -n 9437184 images/copy.raw /dev/zero && echo wiped
virsh vol-delete copy.raw --pool images
virsh vol-delete "$PWD/images/base2.qcow2"

task 19: use a transient pool
virsh pool-create-as scratch dir --target "$PWD/scratch" --build
virsh pool-list --transient
virsh pool-destroy scratch
virsh pool-info scratch >/dev/null 2>&1 || echo gone

task 20: clean up
virsh pool-autostart images --disable
for pool in images isos; do
    virsh pool-destroy $pool
    virsh pool-undefine $pool
done
virsh pool-list --all
