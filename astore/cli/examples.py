"""Two examples for each command, under our names and under virsh's, which its help shows."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, str]] = {
    "pool define": ("astore pool define images.xml", "astore pool define --validate *.xml"),
    "pool define-as": (
        "astore pool define-as images dir --target /srv/images",
        "astore pool define-as share netfs --source-host nas --source-path /exports/vm --target /mnt/vm",
    ),
    "pool create": ("astore pool create scratch.xml", "astore pool create --build scratch.xml"),
    "pool create-as": (
        "astore pool create-as scratch dir --target /tmp/scratch --build",
        "astore pool create-as scratch dir --target /tmp/scratch --print-xml",
    ),
    "pool edit": ("astore pool edit images", "EDITOR=nano astore pool edit images"),
    "pool start": ("astore pool start images --build", "astore pool start --autostart --timeout 60"),
    "pool stop": ("astore pool stop images", "astore pool stop --all --force"),
    "pool build": ("astore pool build images", "astore pool build images isos"),
    "pool delete": ("astore pool delete scratch", "astore pool stop scratch && astore pool delete scratch"),
    "pool undefine": ("astore pool undefine scratch", "astore pool undefine scratch isos"),
    "pool autostart": ("astore pool autostart images", "astore pool autostart --disable images"),
    "pool import": ("astore pool import", "astore pool import /backup/libvirt/storage"),
    "pool discover": (
        "astore pool discover netfs nas",
        "astore pool discover netfs nas --source /exports/vm --define share --target /mnt/vm",
    ),
    "pool capabilities": ("astore pool capabilities", "astore pool capabilities --xml"),
    "pool list": ("astore pool list --all", "astore pool list --details --type netfs,gluster"),
    "pool info": ("astore pool info images", "astore pool info images --bytes"),
    "pool dumpxml": ("astore pool dumpxml images", "astore pool dumpxml images --xpath '//target/path/text()'"),
    "pool refresh": ("astore pool refresh images", "astore pool refresh --all --timeout 30"),
    "pool event": ("astore pool event --event lifecycle --loop", "astore pool event --list"),
    "vol list": ("astore vol list images", "astore vol list --details"),
    "vol info": ("astore vol info images/web.qcow2", "astore vol info /srv/images/web.qcow2 --bytes"),
    "vol dumpxml": ("astore vol dumpxml images/web.qcow2", "astore vol dumpxml web.qcow2 --xpath //capacity"),
    "vol path": ("astore vol path web.qcow2 --pool images", "ls -l $(astore vol path images/web.qcow2)"),
    "vol create": (
        "astore vol create images new.qcow2 20G --format qcow2",
        "astore vol create images web.qcow2 --backing-vol base.qcow2",
    ),
    "vol create-as": (
        "astore vol create-as images new.raw 20G --allocation 20G",
        "astore vol create-as images new.qcow2 20G --format qcow2 --print-xml",
    ),
    "vol create-xml": ("astore vol create-xml images new.xml", "astore vol create-xml images - < new.xml"),
    "vol create-from": (
        "astore vol create-from images new.xml web.qcow2",
        "astore vol create-from images new.xml base.qcow2 --inputpool templates",
    ),
    "vol clone": (
        "astore vol clone images/web.qcow2 copy.qcow2",
        "astore vol clone web.qcow2 backup/web.raw --format raw",
    ),
    "vol move": ("astore vol move images/web.qcow2 archive", "astore vol move web.qcow2 archive/web-2026.qcow2"),
    "vol resize": ("astore vol resize images/web.qcow2 40G", "astore vol resize web.qcow2 10G --delta"),
    "vol wipe": ("astore vol wipe images/old.raw", "astore vol wipe images/old.raw --algorithm random"),
    "vol delete": ("astore vol delete images/old.raw", "astore vol delete a.raw b.raw --pool images"),
    "vol rename": ("astore vol rename images/web.qcow2 www.qcow2", "astore vol rename web.qcow2 www.qcow2 --force"),
    "vol set-format": ("astore vol set-format images/a.img raw", "astore vol set-format a.img qcow2 --pool images"),
    "vol chain": ("astore vol chain images/web.qcow2", "astore vol chain web.qcow2 --json"),
    "vol dependents": ("astore vol dependents images/base.qcow2", "astore vol dependents base.qcow2 --json"),
    "vol check": ("astore vol check images/web.qcow2", "astore vol check --all --pool images"),
    "vol snapshots": ("astore vol snapshots images/web.qcow2", "astore vol snapshots web.qcow2 --json"),
    "vol upload": (
        "astore vol upload images/a.raw disk.raw --sparse",
        "astore vol upload images/a.raw https://example.org/disk.raw.xz --replace",
    ),
    "vol download": (
        "astore vol download images/a.raw a.raw --sparse",
        "astore vol download images/a.raw - | gzip > a.gz",
    ),
    "secret set": ("astore secret set cifs files", "astore secret set volume disk1 --file key"),
    "secret list": ("astore secret list", "astore secret list --json"),
    "secret remove": ("astore secret remove cifs files", "astore secret remove volume disk1"),
    "secret define": ("astore secret define secret.xml", "astore secret define - < secret.xml"),
    "secret set-value": (
        "astore secret set-value 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --file key",
        "astore secret set-value 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --interactive",
    ),
    "secret dumpxml": (
        "astore secret dumpxml 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
        "astore secret dumpxml 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --json",
    ),
    "secret undefine": (
        "astore secret undefine 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
        "astore secret undefine 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --json",
    ),
    "backend list": ("astore backend list", "astore backend list --json"),
    "watch": ("astore watch", "astore watch --autostart images"),
    "events": ("astore events --pool images --kind VolumeAdded", "astore events --since '10 min' --json"),
    "demo": ("astore demo", "astore demo --pools 3 --images 20"),
    "shell": ("astore shell", "astore shell < commands.txt"),
    "help": ("astore help vol create", "astore help pool-define-as"),
    "find-storage-pool-sources-as": (
        "astore find-storage-pool-sources-as netfs nas",
        "astore find-storage-pool-sources-as --type gluster --host san",
    ),
    "find-storage-pool-sources": (
        "astore find-storage-pool-sources netfs source.xml",
        "astore find-storage-pool-sources --type gluster --srcSpec source.xml",
    ),
    "pool-autostart": ("astore pool-autostart images", "astore pool-autostart --pool images --disable"),
    "pool-build": ("astore pool-build images", "astore pool-build --pool images"),
    "pool-capabilities": ("astore pool-capabilities", "astore pool-capabilities > capabilities.xml"),
    "pool-create": ("astore pool-create scratch.xml", "astore pool-create --file scratch.xml --build"),
    "pool-create-as": (
        "astore pool-create-as scratch dir --target /tmp/scratch --build",
        "astore pool-create-as scratch dir - - - - /tmp/scratch --print-xml",
    ),
    "pool-define": ("astore pool-define images.xml", "astore pool-define --file images.xml --validate"),
    "pool-define-as": (
        "astore pool-define-as images dir --target /srv/images",
        "astore pool-define-as share netfs --source-host nas --source-path /exports/vm --target /mnt/vm",
    ),
    "pool-delete": ("astore pool-delete scratch", "astore pool-delete --pool scratch"),
    "pool-destroy": ("astore pool-destroy images", "astore pool-destroy --pool images"),
    "pool-dumpxml": ("astore pool-dumpxml images", "astore pool-dumpxml images --inactive --xpath //target/path"),
    "pool-edit": ("astore pool-edit images", "EDITOR=nano astore pool-edit --pool images"),
    "pool-event": ("astore pool-event --event lifecycle --loop", "astore pool-event images refresh --timestamp"),
    "pool-info": ("astore pool-info images", "astore pool-info --pool images --bytes"),
    "pool-list": ("astore pool-list --all --details", "astore pool-list --inactive --type netfs,gluster --name"),
    "pool-name": (
        "astore pool-name 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
        "astore pool-name --pool 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
    ),
    "pool-refresh": ("astore pool-refresh images", "astore pool-refresh --pool images"),
    "pool-start": ("astore pool-start images", "astore pool-start --pool images --build"),
    "pool-undefine": ("astore pool-undefine scratch", "astore pool-undefine --pool scratch"),
    "pool-uuid": ("astore pool-uuid images", "astore pool-uuid --pool images"),
    "secret-define": ("astore secret-define secret.xml", "astore secret-define --file secret.xml"),
    "secret-dumpxml": (
        "astore secret-dumpxml 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
        "astore secret-dumpxml 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --xpath //usage",
    ),
    "secret-list": ("astore secret-list", "astore secret-list --json"),
    "secret-set-value": (
        "astore secret-set-value 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --file key",
        "astore secret-set-value 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --interactive",
    ),
    "secret-undefine": (
        "astore secret-undefine 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
        "astore secret-undefine --secret 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11",
    ),
    "vol-clone": (
        "astore vol-clone web.qcow2 copy.qcow2 --pool images",
        "astore vol-clone /srv/images/web.qcow2 copy.qcow2",
    ),
    "vol-create": ("astore vol-create images new.xml", "astore vol-create images new.xml --prealloc-metadata"),
    "vol-create-as": (
        "astore vol-create-as images new.raw 20G --allocation 0",
        "astore vol-create-as images new.qcow2 20G --format qcow2 --backing-vol base.qcow2 --backing-vol-format qcow2",
    ),
    "vol-create-from": (
        "astore vol-create-from images new.xml web.qcow2",
        "astore vol-create-from images new.xml base.qcow2 --inputpool templates",
    ),
    "vol-delete": ("astore vol-delete old.raw --pool images", "astore vol-delete /srv/images/old.raw"),
    "vol-download": (
        "astore vol-download a.raw a.copy --pool images --sparse",
        "astore vol-download a.raw a.part --pool images --offset 1M --length 4M",
    ),
    "vol-dumpxml": (
        "astore vol-dumpxml web.qcow2 --pool images",
        "astore vol-dumpxml web.qcow2 images --xpath //capacity",
    ),
    "vol-info": ("astore vol-info web.qcow2 --pool images", "astore vol-info /srv/images/web.qcow2 --bytes"),
    "vol-key": ("astore vol-key web.qcow2 --pool images", "astore vol-key /srv/images/web.qcow2"),
    "vol-list": ("astore vol-list images", "astore vol-list --pool images --details"),
    "vol-name": ("astore vol-name /srv/images/web.qcow2", "astore vol-name --vol /srv/images/web.qcow2"),
    "vol-path": ("astore vol-path web.qcow2 --pool images", "astore vol-path --vol web.qcow2 --pool images"),
    "vol-pool": ("astore vol-pool /srv/images/web.qcow2", "astore vol-pool /srv/images/web.qcow2 --uuid"),
    "vol-resize": ("astore vol-resize web.qcow2 40G --pool images", "astore vol-resize web.raw 1G images --delta"),
    "vol-upload": (
        "astore vol-upload a.raw disk.raw --pool images --sparse",
        "astore vol-upload a.raw disk.part --pool images --offset 1M",
    ),
    "vol-wipe": ("astore vol-wipe old.raw --pool images", "astore vol-wipe old.raw images random"),
}


def examples_of(path: str) -> tuple[str, ...]:
    """Return the examples of a command. :param path: such as ``astore pool list``."""
    return EXAMPLES.get(path.partition(" ")[2], ())
