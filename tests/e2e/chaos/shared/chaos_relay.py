"""A program: pass connections on to one of several backends, whichever accepts. HOST PORT BACKEND:PORT ..."""

import asyncio
import contextlib
import random
import sys


async def copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def relay(backends, reader, writer):
    for backend in random.sample(backends, len(backends)):
        host, _, port = backend.rpartition(":")
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(copy(reader, back), copy(there, writer))
            return
    writer.transport.abort()


async def main(host, port, *backends):
    server = await asyncio.start_server(lambda reader, writer: relay(backends, reader, writer), host, int(port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
