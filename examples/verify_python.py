#!/usr/bin/env python3
"""A callback receiver that checks `Runflow-Signature` (contract section 2). Standard library only.

    CALLBACK_SECRET=whsec_... python3 verify_python.py 9000
"""

import hashlib
import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["CALLBACK_SECRET"].encode()  # the key is the whole text, `whsec_` included
MAX_BODY = 16 * 1024 * 1024  # anybody can post here, so bound what is read before the signature is known


def is_authentic(body: bytes, signature: str) -> bool:
    """Compares over the bytes as they came: parsing and writing the JSON again would change them."""
    expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode())  # in constant time


class Receiver(BaseHTTPRequestHandler):
    timeout = 10  # seconds a silent connection is kept

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self.answer(411)
        if int(length) > MAX_BODY:
            return self.answer(413)
        body = self.rfile.read(int(length))
        if not is_authentic(body, self.headers.get("Runflow-Signature", "")):
            return self.answer(401)
        callback = json.loads(body)
        # Callbacks come at least once: a real receiver remembers `webhook-id` and skips what it has seen. It also
        # answers first and works later, since an attempt has 10 s in all.
        print(callback["event"], callback["run_id"], "webhook-id", self.headers.get("webhook-id"), flush=True)
        self.answer(204)

    def answer(self, status: int):
        self.send_response(status)
        self.end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()
