"""astore: storage pools and volumes for asyncio."""
