"""``python -m mest_fed.link.node``: what ``mest-fed node`` becomes."""

import sys
import types

# gRPC imports its half for asyncio, which a node does not use: 6 MB of its memory (measured).
sys.modules.setdefault("grpc.aio", types.ModuleType("grpc.aio"))

if __name__ == "__main__":
    from mest_fed.link.node.command import main

    main()
