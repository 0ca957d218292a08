"""Take a pool and its volumes through their whole life, with astore: with_astore.py STATE_FOLDER FOLDER."""

import asyncio
import inspect
import sys

import astore

POOL = "<pool type='dir'><name>porting</name><target><path>{}</path></target></pool>"
BASE = "<volume><name>base.raw</name><capacity unit='MiB'>1</capacity></volume>"
DISK = """<volume><name>disk.qcow2</name><capacity unit='GiB'>1</capacity><target><format type='qcow2'/></target>
    <backingStore><path>{}</path><format type='raw'/></backingStore></volume>"""
COPY = "<volume><name>copy.raw</name><capacity unit='MiB'>1</capacity></volume>"
EVENTS: dict[type[astore.Event], str] = {
    astore.PoolDefined: "defined",
    astore.PoolUndefined: "undefined",
    astore.PoolStarted: "started",
    astore.PoolStopped: "stopped",
    astore.PoolBuilt: "built",
    astore.PoolDeleted: "deleted",
}


async def main(state: str, folder: str) -> None:
    async with astore.Manager(state) as manager, manager.events(kinds=tuple(EVENTS)) as events:
        pool = await manager.define(POOL.format(folder))
        await pool.build()
        await pool.start()
        await pool.set_autostart(True)
        for one in manager.pools(active=True, autostart=True):
            print(f"{one.name}: persistent {one.persistent}, {one.definition.target.path}")
        base = await pool.create_volume(BASE)
        data = bytes(range(256)) * 4096
        await base.upload(data)
        disk = await pool.create_volume(DISK.format(base.path))
        await disk.resize(2 << 30)
        copy = await pool.copy_volume(base, COPY)
        async with copy.download() as chunks:
            received = b"".join([chunk async for chunk in chunks])
        print("the copy is the same:", received == data)
        await copy.wipe()
        await pool.refresh()
        for info in pool.volumes:
            print(f"{info.name}: {info.capacity} bytes, {info.format}, backed by {info.backing_path}")
        for attempt in (
            lambda: manager.pool("nosuch"),
            lambda: pool.volume("nosuch"),
            lambda: pool.create_volume(BASE),
            lambda: disk.resize(4096),
            pool.undefine,
        ):
            try:
                answer = attempt()
                if inspect.isawaitable(answer):
                    await answer
            except astore.AstoreError as error:
                print("refused:", int(error.libvirt_code), error.libvirt_code == astore.LibvirtCode.OPERATION_INVALID)
        for volume in (disk, copy, base):
            await volume.delete()
        await pool.stop()
        await pool.delete()
        await pool.undefine()
        seen = []
        while event := events.receive_nowait():
            seen.append(EVENTS[type(event)])
        print(*seen)


asyncio.run(main(*sys.argv[1:]))
