"""An SMTP server (RFC 5321) that accepts and discards every mail."""

import asyncio
from multiprocessing.connection import Connection


def relay(told: Connection) -> None:
    """Serve on a free port of loopback until the process is terminated; sends the port to `told`."""
    asyncio.run(_serve(told))


async def _serve(told: Connection) -> None:
    server = await asyncio.start_server(_converse, "127.0.0.1", 0)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 localhost\r\n")
    while line := await reader.readline():
        match line[:4].upper():
            case b"DATA":
                writer.write(b"354 Go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 Accepted\r\n")
            case b"QUIT":
                writer.write(b"221 Bye\r\n")
                break
            case _:
                writer.write(b"250 localhost\r\n")
    writer.close()
