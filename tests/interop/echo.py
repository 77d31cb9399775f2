"""A stock `websockets` echo server over TLS; each frame that comes is one line on stdout.

python echo.py PORT CERT KEY
"""

import asyncio
import ssl
import sys

from websockets.asyncio.server import serve


async def echo(socket):
    async for frame in socket:
        print(frame, flush=True)
        await socket.send(frame)


async def main(port, cert, key):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    async with serve(echo, "127.0.0.1", int(port), ssl=tls) as server:
        print("listening", flush=True)
        await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
