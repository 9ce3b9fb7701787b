"""A TCP proxy that can cut its connections."""

import asyncio
import threading


class Proxy:
    """Forwards connections of 127.0.0.1 to a server."""

    def __init__(self, host, port):
        self._server, self._open, self._writers = (host, port), True, set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        starting = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._listener = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.port = self._listener.sockets[0].getsockname()[1]

    def cut(self):
        """Closes all connections, and new ones at once."""
        self._loop.call_soon_threadsafe(self._cut)

    def restore(self):
        """Forwards new connections again."""
        self._open = True

    def _cut(self):
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader, writer):
        if not self._open:
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_server}
        self._writers |= both
        await asyncio.gather(self._copy(reader, to_server), self._copy(from_server, writer))
        self._writers -= both

    async def _copy(self, reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # cut
        writer.close()
