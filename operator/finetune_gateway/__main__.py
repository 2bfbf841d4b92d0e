"""`python -m finetune_gateway`: one gateway replica."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from finetune_api import streams
from finetune_gateway.config import GatewayConfig
from finetune_gateway.process import serve


def main() -> int:
    """Exit status: 0 after a graceful end, 78 for a bad environment."""
    streams.never_fail()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = GatewayConfig.from_environment(os.environ)
    except ValueError as error:
        print(f"finetune-gateway: {error}", file=sys.stderr)
        return 78
    asyncio.run(serve(config=config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
