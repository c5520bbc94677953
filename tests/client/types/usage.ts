// What raincheck.d.ts lets through, and what not. Checked by `tsc`, never run.

import {
  cancel,
  DeadlineExceeded,
  follow,
  FollowError,
  type FollowOptions,
  type Job,
  NoResponse,
  type Options,
  type Status,
  Unreachable,
  updates,
} from "../../../src/raincheck/static/raincheck.js";

export async function usage(url: string, signal: AbortSignal): Promise<string> {
  const shown: string[] = [];
  const options: FollowOptions = {
    signal,
    deadline: 600,
    wait: 0,
    events: false,
    cancel: true,
    headers: { Authorization: "Bearer token" },
    credentials: "include",
    fetch: (where, init) => fetch(where, { ...init, redirect: "manual" }),
    onUpdate: (job) => shown.push(`${job.status} ${job.progress?.toFixed(2) ?? ""} ${job.message}`),
    onTrouble: (reason) => shown.push(reason?.message ?? "found"),
  };
  const jobs: Job[] = [fetch(url), await fetch(url), url, new URL(url), { links: { result: url } }];
  for (const job of jobs) {
    const response: Response = await follow(job, options);
    await response.text();
  }
  await follow(fetch(url), { onUpdate: async () => {} });
  for await (const job of updates(url, { signal })) {
    const progress: number | null | undefined = job.progress;
    const size: number | undefined = job.response?.size;
    shown.push(`${progress} ${size} ${job.error?.message} ${job["runs"]}`);
    const again: Status = await cancel(job);
    shown.push(again.status);
  }
  try {
    await follow(url);
  } catch (error) {
    if (error instanceof DeadlineExceeded) return error.statusUrl ?? "";
    if (error instanceof Unreachable || error instanceof NoResponse) return error.message;
    if (error instanceof FollowError) return `${error.response?.status}`;
  }
  return shown.join("\n");
}

export function misuse(url: string, options: Options): void {
  // @ts-expect-error: a deadline is a number of seconds
  void follow(url, { deadline: "10" });
  // @ts-expect-error: there is no such option
  void follow(url, { timeout: 10 });
  // @ts-expect-error: a request is not sent by us
  void follow(new Request(url));
  // @ts-expect-error: links have a result
  void follow({ links: { self: url } });
  // @ts-expect-error: only `follow` waits for somebody who may leave
  void updates(url, { cancel: true });
  // @ts-expect-error: it is a promise
  const response: Response = follow(url, options);
  void response;
}
