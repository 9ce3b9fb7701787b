// Verifies callbacks with the standardwebhooks package of npm. Input and output are those of verify.py.

const { createInterface } = require("node:readline");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

let valid = 0;
createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { secret, overlap, headers, body } = JSON.parse(line);
    const bytes = Buffer.from(body, "base64");
    for (const listed of [secret, ...overlap]) new Webhook(listed).verify(bytes, headers);
    const webhook = new Webhook(secret);
    try {
      webhook.verify(Buffer.concat([bytes, Buffer.from(" ")]), headers);
    } catch (error) {
      if (!(error instanceof WebhookVerificationError)) throw error;
      valid += 1;
    }
  })
  .on("close", () => console.log(valid));
