// @azure/core-lro, with fetch as what sends its requests.

import { createHttpPoller } from "@azure/core-lro";
import { drive } from "./harness.mjs";

async function send(method, url) {
  const response = await fetch(url, { method });
  const text = await response.text();
  const body = text && JSON.parse(text);
  const headers = Object.fromEntries(response.headers);
  const rawResponse = { statusCode: response.status, request: { method, url }, headers, body };
  if (!response.ok) throw new Error(`${response.status}: ${text}`);
  return { flatResponse: body, rawResponse };
}

function begin(url, name, settings = {}) {
  let links;
  const poller = createHttpPoller(
    {
      sendInitialRequest: async () => {
        const accepted = await send("POST", `${url}/stations/${name}`);
        links = accepted.rawResponse.body.links;
        return accepted;
      },
      sendPollRequest: (path) => send("GET", path),
    },
    settings,
  );
  return { poller, links: () => links };
}

await drive({
  run: (url, name) => begin(url, name).poller.pollUntilDone(),
  cancel: async (url, name) => {
    const { poller, links } = begin(url, name);
    await poller.submitted();
    await send("POST", links().cancel);
    return await poller.pollUntilDone();
  },
  resume: async (url, name) => {
    const restoreFrom = await begin(url, name).poller.serialize();
    return await begin(url, name, { restoreFrom }).poller.pollUntilDone();
  },
});
