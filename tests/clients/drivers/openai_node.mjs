// openai: background responses, which its users poll in a loop of their own.

import OpenAI from "openai";
import { drive, ended, shown } from "./harness.mjs";

const connect = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "key" });

async function begin(client, name) {
  const asked = { model: "rain-1", input: name, background: true };
  const response = await client.responses.create(asked);
  return response.id;
}

async function end(client, id) {
  const response = await ended(
    () => client.responses.retrieve(id),
    ({ status }) => status !== "queued" && status !== "in_progress",
  );
  if (response.status !== "completed") throw shown(response.error?.message, response.status);
  return response.output_text;
}

await drive({
  run: async (url, name) => {
    const client = connect(url);
    return await end(client, await begin(client, name));
  },
  cancel: async (url, name) => {
    const client = connect(url);
    const id = await begin(client, name);
    await client.responses.cancel(id);
    return await end(client, id);
  },
  resume: async (url, name) => end(connect(url), await begin(connect(url), name)),
});
