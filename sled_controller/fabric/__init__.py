"""NVMe/TCP: target and host roles as pure state machines, each with a thin asyncio shell."""
