// A callback receiver that checks `webhook-signature` as Standard Webhooks has it (contract section 2).
// Node's own modules only; the npm package `standardwebhooks` does the same.
//
//     CALLBACK_SECRET=whsec_... node verify_node.mjs 9000

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const secret = process.env.CALLBACK_SECRET ?? "";
if (!secret.startsWith("whsec_")) throw new Error("set CALLBACK_SECRET to the secret, whsec_ included");
const key = Buffer.from(secret.slice("whsec_".length), "base64");
const TOLERANCE = 5 * 60; // seconds; an older request may be a recorded one that is played again
const MAX_BODY = 16 * 1024 * 1024; // anybody can post here, so bound what is kept before the signature is known

/** Works on the bytes as they came: parsing and writing the JSON again would change them. */
function isAuthentic(headers, body) {
  const id = headers["webhook-id"] ?? "";
  const timestamp = headers["webhook-timestamp"] ?? "";
  if (!/^\d+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE) return false;
  const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
  // A list, separated by blanks, so that a sender may sign with two secrets during a rotation.
  return (headers["webhook-signature"] ?? "").split(" ").some((entry) => {
    const [version, signature] = entry.split(",");
    const given = Buffer.from(signature ?? "", "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
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
  if (!isAuthentic(request.headers, body)) return answer(401);
  const callback = JSON.parse(body);
  // Callbacks come at least once: a real receiver remembers `webhook-id` and skips what it has seen. It also
  // answers first and works later, since an attempt has 10 s in all.
  console.log(callback.event, callback.run_id, "webhook-id", request.headers["webhook-id"]);
  answer(204);
});
server.listen(Number(process.argv[2] ?? 9000), "127.0.0.1");
