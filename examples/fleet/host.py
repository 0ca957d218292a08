"""Be a host of a fleet until Ctrl-C: ``python host.py nats://HOST:4222 prod``. The command is ``astore fleet agent``."""

import asyncio
import sys

from astore_fleet import Agent, Fleet


async def show(agent: Agent) -> None:
    async with agent.manager.events() as events:  # a Manager like any other, with the pools of this host
        async for event in events:
            print(event, flush=True)


async def main(url: str, name: str) -> None:
    async with await Fleet.connect(url, name) as fleet, fleet.agent(labels={"disk": "ssd"}) as agent:
        print(agent.me.host, "is there", flush=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(show(agent))
            await agent.wait()  # it raises an error if the agent cannot go on


asyncio.run(main(*sys.argv[1:]))
