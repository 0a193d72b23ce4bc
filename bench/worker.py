"""One client of one peer: runs in that peer's own interpreter and answers one JSON line with one JSON line.

    request   {"call": "small_puts", "args": {"count": 1000}}
    reply     {"result": …}  or  {"error": "…"}  or  {"unsupported": "…"}

Whatever the libraries print goes to standard error, so that the protocol keeps standard output for itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


def adapter(peer: str) -> ModuleType:
    """Loads the adapter of a peer, and with it that peer's client library."""
    path = Path(__file__).parent / "peers" / peer / "adapter.py"
    spec = importlib.util.spec_from_file_location(f"{peer}_adapter", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no adapter at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Serves requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer, place = sys.argv[1], json.loads(sys.argv[2])
    import workloads

    library = adapter(peer)
    client = workloads.Client(library.Store, place)
    replies.write('{"result": "ready"}\n')
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            reply = {"result": getattr(client, request["call"])(**request["args"])}
        except workloads.UnsupportedError as reason:
            reply = {"unsupported": str(reason)}
        except Exception as error:  # the driver reports it and goes on
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
