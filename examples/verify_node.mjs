// A callback receiver that checks `webhook-signature` by Standard Webhooks (contract section 2).
// Node's own modules only; the npm package `standardwebhooks` does the same.
//
//     CALLBACK_SECRET=whsec_... node verify_node.mjs 9000

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const PREFIX = "whsec_";
const MIN_KEY = 16; // bytes; a shorter key could be guessed

/** Exits on an invalid secret: it would reject every callback or, if empty, let anyone sign. */
function keyOf(text) {
  const secret = text.trim(); // a file's last line ends in a newline
  const refuse = (reason) => {
    console.error(`CALLBACK_SECRET: ${reason}`);
    process.exit(1);
  };
  if (!secret.startsWith(PREFIX)) refuse(`expected the whole secret, which begins with ${PREFIX}`);
  const encoded = secret.slice(PREFIX.length);
  const key = Buffer.from(encoded, "base64");
  if (key.toString("base64") !== encoded) refuse(`what follows ${PREFIX} is not standard base64`); // Buffer skips the rest
  if (key.length < MIN_KEY) refuse(`what follows ${PREFIX} is shorter than ${MIN_KEY} bytes`);
  return key;
}

const key = keyOf(process.env.CALLBACK_SECRET ?? "");
const TOLERANCE = 5 * 60; // seconds; an older request may be a replay
const MAX_BODY = 16 * 1024 * 1024; // limits unauthenticated input

/** Verifies the received bytes: parsing and rewriting the JSON could change them. */
function isAuthentic(headers, body) {
  // Each header must occur once: of two, another program might use the other.
  const only = (name) => (headers[name]?.length === 1 ? headers[name][0] : "");
  const id = only("webhook-id");
  const timestamp = only("webhook-timestamp");
  if (!/^\d+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE) return false;
  const mac = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64");
  const expected = Buffer.from(`v1,${mac}`);
  // A list separated by spaces: during a rotation a request is signed with several secrets.
  return only("webhook-signature").split(" ").some((entry) => {
    const given = Buffer.from(entry);
    return given.length === expected.length && timingSafeEqual(given, expected);
  });
}

const server = createServer(async (request, response) => {
  const answer = (status) => response.writeHead(status).end();
  if (request.method !== "POST") return answer(405);
  const chunks = [];
  let length = 0;
  try {
    for await (const chunk of request) {
      length += chunk.length;
      if (length > MAX_BODY) return request.destroy();
      chunks.push(chunk);
    }
  } catch {
    return; // the sender disconnected
  }
  const body = Buffer.concat(chunks);
  if (!isAuthentic(request.headersDistinct, body)) return answer(401);
  const callback = JSON.parse(body);
  // Delivery is at least once: a real receiver stores each `webhook-id` and skips known ones. It also
  // responds before it works, since an attempt has 10 s in all.
  console.log(callback.event, callback.run_id, "webhook-id", request.headers["webhook-id"]);
  answer(204);
});
server.listen(Number(process.argv[2] ?? 9000), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
