// @medplum/core: `startAsyncRequest`, as its bulk export does.

import { MedplumClient } from "@medplum/core";
import { drive, ended, seconds } from "./harness.mjs";

const POLLING = { pollStatusOnAccepted: true };

function client(url, name) {
  const known = {};
  const medplum = new MedplumClient({
    baseUrl: `${url}/`,
    fetch: async (...request) => {
      const response = await fetch(...request);
      known.status ??= response.headers.get("content-location");
      return response;
    },
  });
  const start = () => medplum.startAsyncRequest(`${url}/fhir/${name}/$export`, POLLING);
  return { medplum, known, start };
}

const types = ({ output }) => output.map(({ type }) => type);

await drive({
  run: async (url, name) => types(await client(url, name).start()),
  cancel: async (url, name) => {
    const { medplum, known, start } = client(url, name);
    const end = start();
    end.catch(() => {}); // it is looked at below
    await ended(() => seconds(0.1), () => known.status);
    await medplum.post(`${known.status}/cancel`);
    return types(await end);
  },
  resume: async (url, name) => {
    const { known, start } = client(url, name);
    start(); // whose end nobody waits for
    await ended(() => seconds(0.1), () => known.status);
    return types(await client(url, name).medplum.get(known.status, POLLING));
  },
});
