// replicate: predictions; `run` waits for one.

import Replicate from "replicate";
import { drive, shown } from "./harness.mjs";

const version = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa";

const connect = (url) => new Replicate({ auth: "token", baseUrl: `${url}/v1` });

async function end(client, begun) {
  const prediction = await client.wait(begun);
  if (prediction.status !== "succeeded") throw shown(prediction.error, prediction.status);
  return prediction.output;
}

await drive({
  run: (url, name) => connect(url).run(`rain/gauge:${version}`, { input: { name } }),
  cancel: async (url, name) => {
    const client = connect(url);
    const begun = await client.predictions.create({ version, input: { name } });
    await client.predictions.cancel(begun.id);
    return await end(client, begun);
  },
  resume: async (url, name) => {
    const begun = await connect(url).predictions.create({ version, input: { name } });
    const later = connect(url);
    return await end(later, await later.predictions.get(begun.id));
  },
});
