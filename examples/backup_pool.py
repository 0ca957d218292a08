"""Copy the volumes of a pool that have changed since the last backup: backup_pool.py POOL FOLDER."""

import asyncio
import json
import os
import sys
from pathlib import Path

import astore


async def copy(volume: astore.Volume, target: Path) -> None:
    """Write a volume into a file, which appears when it is complete."""
    part = target.with_name(f".{target.name}.part")
    with part.open("wb") as file:
        async with volume.download(sparse=True) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, astore.Hole):
                    file.seek(chunk.length, os.SEEK_CUR)
                else:
                    await asyncio.to_thread(file.write, chunk)
        file.truncate()  # a hole at the end has no bytes
        os.fsync(file.fileno())
    part.replace(target)


async def main(name: str, folder: Path, known: dict[str, list[int]]) -> None:
    async with astore.Manager(os.environ.get("ASTORE_STATE_DIR")) as manager:
        pool = manager.pool(name)
        await pool.refresh()
        (folder / "pool.xml").write_text(pool.to_xml(inactive=True))
        four_at_once = asyncio.Semaphore(4)

        async def back_up(info: astore.VolumeInfo) -> None:
            state = [info.physical, info.mtime_ns, info.inode]
            if info.type == "file" and known.get(info.name) != state:
                async with four_at_once:
                    await copy(pool.volume(info.name), folder / info.name)
                print(f"{info.name} copied")
                known[info.name] = state

        async with asyncio.TaskGroup() as tasks:
            for info in pool.volumes:
                tasks.create_task(back_up(info))


folder = Path(sys.argv[2])
folder.mkdir(exist_ok=True)
index = folder / "backup.json"
known = json.loads(index.read_text()) if index.exists() else {}
asyncio.run(main(sys.argv[1], folder, known))
index.write_text(json.dumps(known))
