// A callback receiver that checks `webhook-signature` as Standard Webhooks has it (contract section 2).
// Node's own modules only; the npm package `standardwebhooks` does the same.
//
//     CALLBACK_SECRET=whsec_... node verify_node.mjs 9000

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const PREFIX = "whsec_";
const MIN_KEY = 16; // bytes; a shorter key could be found by trying

/** A secret that can't be right would refuse every callback or, being empty, let anybody sign: it ends the start. */
function keyOf(text) {
  const secret = text.trim(); // a file's last line ends in a newline
  const refuse = (reason) => {
    console.error(`CALLBACK_SECRET: ${reason}`);
    process.exit(1);
  };
  if (!secret.startsWith(PREFIX)) refuse(`expected the whole secret, which begins with ${PREFIX}`);
  const encoded = secret.slice(PREFIX.length);
  const key = Buffer.from(encoded, "base64");
  if (key.toString("base64") !== encoded) refuse(`what follows ${PREFIX} is not standard base64`); // Buffer skips what isn't
  if (key.length < MIN_KEY) refuse(`what follows ${PREFIX} is shorter than ${MIN_KEY} bytes`);
  return key;
}

const key = keyOf(process.env.CALLBACK_SECRET ?? "");
const TOLERANCE = 5 * 60; // seconds; an older request may be a recorded one that is played again
const MAX_BODY = 16 * 1024 * 1024; // anybody can post here, so bound what is kept before the signature is known

/** Works on the bytes as they came: parsing and writing the JSON again would change them. */
function isAuthentic(headers, body) {
  // Every header must be there once: of two, another program might take the other one.
  const only = (name) => (headers[name]?.length === 1 ? headers[name][0] : "");
  const id = only("webhook-id");
  const timestamp = only("webhook-timestamp");
  if (!/^\d+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE) return false;
  const mac = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64");
  const expected = Buffer.from(`v1,${mac}`);
  // A list, separated by blanks: during a rotation a request is signed with several secrets.
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
    return; // the sender went away
  }
  const body = Buffer.concat(chunks);
  if (!isAuthentic(request.headersDistinct, body)) return answer(401);
  const callback = JSON.parse(body);
  // Callbacks come at least once: a real receiver remembers `webhook-id` and skips what it has seen. It also
  // answers first and works later, since an attempt has 10 s in all.
  console.log(callback.event, callback.run_id, "webhook-id", request.headers["webhook-id"]);
  answer(204);
});
server.listen(Number(process.argv[2] ?? 9000), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
