"""Verifies callbacks with Python's own hmac and with the standardwebhooks package of PyPI.

Reads one callback per line, {"secret", "overlap", "headers", "body"}, with the body in base64. "overlap"
lists secrets that only `webhook-signature` must match. Prints the number of valid callbacks.
"""

import base64
import hashlib
import hmac
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

valid = 0
for line in sys.stdin:
    callback = json.loads(line)
    body = base64.b64decode(callback["body"])
    headers = callback["headers"]
    secret = callback["secret"]
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(expected, headers["runflow-signature"]), "Runflow-Signature"
    for listed in [secret, *callback["overlap"]]:
        assert Webhook(listed).verify(body, headers) == json.loads(body)
    try:
        Webhook(secret).verify(body + b" ", headers)
    except WebhookVerificationError:
        valid += 1
print(valid)
