#!/usr/bin/env python3
"""A callback receiver that checks `Runflow-Signature` (contract section 2). Standard library only.

    CALLBACK_SECRET=whsec_... python3 verify_python.py 9000
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "whsec_"
MIN_KEY = 16  # bytes; a shorter secret could be guessed
MAX_BODY = 16 * 1024 * 1024  # limits unauthenticated input


def key_of(text: str) -> bytes:
    """Exits on an invalid secret: it would reject every callback or, if empty, let anyone sign."""
    secret = text.strip()  # a file's last line ends in a newline
    if not secret.startswith(PREFIX):
        sys.exit(f"CALLBACK_SECRET: expected the whole secret, which begins with {PREFIX}")
    encoded = secret[len(PREFIX) :]
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        decoded = None
    if decoded is None or base64.b64encode(decoded).decode() != encoded:
        sys.exit(f"CALLBACK_SECRET: what follows {PREFIX} is not standard base64")
    if len(decoded) < MIN_KEY:
        sys.exit(f"CALLBACK_SECRET: what follows {PREFIX} is shorter than {MIN_KEY} bytes")
    return secret.encode()  # the key is the whole text, `whsec_` included


SECRET = key_of(os.environ.get("CALLBACK_SECRET", ""))


def is_authentic(body: bytes, signatures: list) -> bool:
    """Verifies the received bytes: parsing and rewriting the JSON could change them."""
    if len(signatures) != 1:
        return False
    expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signatures[0].encode())  # in constant time


class Receiver(BaseHTTPRequestHandler):
    timeout = 10  # seconds until a silent connection is closed

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self.answer(411)
        if int(length) > MAX_BODY:
            return self.answer(413)
        body = self.rfile.read(int(length))
        if not is_authentic(body, self.headers.get_all("Runflow-Signature", [])):
            return self.answer(401)
        callback = json.loads(body)
        # Delivery is at least once: a real receiver stores each `webhook-id` and skips known ones. It also
        # responds before it works, since an attempt has 10 s in all.
        print(callback["event"], callback["run_id"], "webhook-id", self.headers.get("webhook-id"), flush=True)
        self.answer(204)

    def answer(self, status: int):
        self.send_response(status)
        self.end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    server = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
