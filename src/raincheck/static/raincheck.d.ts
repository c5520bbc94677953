/**
 * Follows a 202 to the response that it stands for: raincheck's, and that of any server that says 202
 * and where to ask. Times are seconds.
 */

/** How a job stands, as its server spells it; raincheck's has at least these. */
export interface Status {
  /** `queued`, `running`, `canceling`, and then `succeeded`, `failed` or `canceled`. */
  status: string;
  /** 0 to 1; null if the handler has not said. */
  progress?: number | null;
  message?: string | null;
  /** From 1 on, while it is queued. */
  queue_position?: number | null;
  /** RFC 3339. */
  estimated_completion?: string | null;
  /** How often it has begun to run. */
  runs?: number;
  /** RFC 3339; while it waits for another run, as after one that has failed. */
  next_run_at?: string;
  /** Of the job that has ended. */
  response?: { status: number; content_type: string | null; size?: number };
  /** Why it has failed. */
  error?: { code?: string; message?: string; [name: string]: unknown };
  links?: Links;
  [name: string]: unknown;
}

/** The links of a status document; relative ones are relative to the page. */
export interface Links {
  /** The status URL, which becomes the response. */
  result: string;
  /** The monitor. */
  self?: string;
  events?: string | null;
  cancel?: string | null;
}

/**
 * What a job is known by: the answer to the request or its promise, as `fetch` returns it; its status
 * URL, with which any page can go on; or a status document of raincheck's, of which the links are enough.
 */
export type Job = string | URL | Response | Promise<Response> | Status | { links: Links };

export interface Options {
  /** Ends the wait, with the signal's reason, as it does with `fetch`. */
  signal?: AbortSignal | null;
  /** How long it may take in all; then `DeadlineExceeded`, and the job goes on. Default: as it takes. */
  deadline?: number;
  /**
   * The longest that one poll may take at a server that answers when there is something to say
   * (`Prefer: wait`, RFC 7240); 0 for never. Default 20.
   */
  wait?: number;
  /** Whether changes are heard of by Server-Sent Events, where the server has them. Default true. */
  events?: boolean;
  /** Called when an answer has failed, with the reason, and with null when there is one again. */
  onTrouble?: (reason: Error | null) => void;
  /** Sent with what is asked at the origin of the request, and nowhere else: `Authorization`. */
  headers?: HeadersInit;
  /** As for `fetch`, for the same origin; to others `omit`. Default `same-origin`. */
  credentials?: RequestCredentials;
  /** Sends the polls in place of the global `fetch`: one that refreshes a token, say. */
  fetch?: (url: string, init: RequestInit) => Promise<Response>;
}

export interface FollowOptions extends Options {
  /** Called with how the job stands, at each change; what it throws ends the wait. */
  onUpdate?: (status: Status) => unknown;
  /** Whether the job is cancelled if `signal` ends the wait. Default false: it goes on. */
  cancel?: boolean;
}

/**
 * Waits for the final response. An answer that is no 202, or a 202 that names no status URL, is that.
 *
 * @throws FollowError - see its kinds; and whatever the first `fetch` rejects with.
 */
export function follow(job: Job, options?: FollowOptions): Promise<Response>;

/**
 * How the job stands: at once, and at each change. The last one says how it has ended.
 *
 * @throws FollowError - see its kinds.
 */
export function updates(job: Job, options?: Options): AsyncGenerator<Status, void, void>;

/**
 * Asks the job to stop: as its server says, or else by DELETE.
 *
 * @returns How it stands then; it may have ended before.
 * @throws FollowError - its server does not do that, or there is no such job.
 */
export function cancel(job: Job, options?: Options): Promise<Status>;

/** The wait has ended without the job's response. */
export class FollowError extends Error {
  constructor(
    message: string,
    more?: { statusUrl?: string; response?: Response; cause?: unknown },
  );
  /** Where the wait can go on: `follow(error.statusUrl)`. Undefined if it is not known. */
  readonly statusUrl: string | undefined;
  /** What was answered instead, if anything was. */
  readonly response: Response | undefined;
}

/** The job has not ended by the deadline. It goes on. */
export class DeadlineExceeded extends FollowError {}

/** Its server has not answered for two minutes, or only that it cannot. */
export class Unreachable extends FollowError {}

/** There is none: the job failed where only a document says so; or it is unknown, gone or foreign. */
export class NoResponse extends FollowError {}
