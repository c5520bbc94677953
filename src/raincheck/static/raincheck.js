// Follows a 202 to the response that it stands for: raincheck's, and that of any server that says 202
// and where to ask. No dependencies; for browsers, workers and Node 20. MIT license.
//
//   const response = await follow(fetch("/reports", { method: "POST" }), { onUpdate: show });
//
// raincheck.d.ts beside it says what each option is. Times are seconds.

const [FIRST_PAUSE, LONGEST_PAUSE] = [1, 30]; // between polls, where the server says nothing
const PATIENCE = 120; // polls may fail for so long, one after the other
const ANSWER = 30; // an answer takes no longer, but for what it was asked to wait
const [FIRST_EVENT, SILENCE] = [10, 30]; // a stream comes at once, and says something all the time
const DEAF = 30; // a stream that has said nothing is not tried again before that
const UNHEARD = 5; // what changes between two polls, the second one does not hear of
const SHORT = 1; // a poll that took less has not waited

const PASSING = new Set([429, 502, 503, 504]);
const GONE = new Set([401, 403, 404, 410]);
const FAILED = new Set(["failed", "canceled", "cancelled", "error"]);
const ENDED = new Set([...FAILED, "succeeded", "completed"]);
const UNFINISHED = new Set(
  ["accepted", "notstarted", "queued", "pending", "running", "inprogress", "canceling"],
);

// --- what others call --------------------------------------------------------------------------

export async function follow(job, options = {}) {
  const following = new Following(options);
  if (await following.begin(job)) return following.response;
  try {
    if (options.onUpdate) {
      for await (const status of following.changes()) await options.onUpdate(status);
    }
    return await following.ended();
  } catch (error) {
    if (options.cancel && options.signal?.aborted) await following.abandon();
    throw error;
  }
}

export async function* updates(job, options = {}) {
  const following = new Following(options);
  await following.begin(job);
  yield* following.changes();
  if (following.gone) throw await following.noResponse();
}

export async function cancel(job, options = {}) {
  const following = new Following(options);
  await following.begin(job);
  return following.response ? following.status : following.cancelled();
}

export class FollowError extends Error {
  name = "FollowError";

  constructor(message, { statusUrl, response, cause } = {}) {
    super(statusUrl ? `${message}; its status URL is ${statusUrl}` : message, cause && { cause });
    this.statusUrl = statusUrl;
    this.response = response;
  }
}

export class DeadlineExceeded extends FollowError {
  name = "DeadlineExceeded";
}

export class Unreachable extends FollowError {
  name = "Unreachable";
}

export class NoResponse extends FollowError {
  name = "NoResponse";
}

// --- one wait for one job ----------------------------------------------------------------------

class Following {
  status = {}; // the last document
  response; // of the job, or whatever ends the wait

  #options;
  #ends; // the deadline, as `now()` has it
  #origin; // headers and credentials are for it alone
  #place; // { url, shows }: a `response`, a `document` that is always 200, or `either`
  #monitor; // where a server of ours shows how the job stands, whether it has ended or not
  #events;
  #cancel;
  #result; // where the result of an operation of Azure's will be
  #last; // the answer that `status` came in
  #from; // the place that was asked last
  #again; // seconds after which the server wants to be asked again
  #prompt = false; // it answers a poll that may wait when there is something to say
  #took = Infinity; // by the last poll that was to wait
  #pause = FIRST_PAUSE;
  #deaf = -Infinity; // no events before that
  #mayPrefer; // another origin lets this page send `Prefer`
  #troubled = false;

  constructor(options) {
    for (const name of ["deadline", "wait"]) {
      const given = options[name];
      if (given !== undefined && !(given >= 0)) throw new RangeError(`${name} is at least 0`);
    }
    this.#options = { wait: 20, events: true, credentials: "same-origin", ...options };
    this.#ends = now() + (options.deadline ?? Infinity);
  }

  // Takes what the job is known by; whether there is a response, and nothing to follow.
  async begin(job) {
    if (typeof job === "string" || job instanceof URL) {
      this.#settle({ url: resolved(job), shows: "either" });
      return false;
    }
    const given = await this.#given(job);
    if (typeof given?.status !== "number") {
      const named = Object.entries(linksOf(given)).filter(([, url]) => url);
      const links = Object.fromEntries(named.map(([name, url]) => [name, resolved(url)]));
      if (!links.result) throw new TypeError("a job is a URL, an answer or its promise, or a status");
      this.#settle({ url: links.result, shows: "response" });
      this.#learn({ ...given, links });
      return false;
    }
    if (given.status === 202 && (await this.#accepted(given))) return false;
    [this.response, this.status] = [given, outcomeOf(given)];
    return true;
  }

  // How the job stands, each time that it has changed.
  async *changes() {
    let told;
    const isNew = () => told !== (told = JSON.stringify(this.status));
    if (this.status.status && isNew()) yield this.status;
    while (!this.response && !hasEnded(this.status)) {
      if (this.#events && this.#options.events && now() >= this.#deaf) {
        for await (const status of this.#streamed()) if (isNew()) yield status;
      } else {
        const wait = this.status.status ? Math.min(this.#options.wait, UNHEARD) : 0;
        await this.#poll(this.#monitor ?? this.#place, wait);
        if (!this.gone && isNew()) yield this.status;
      }
    }
  }

  // The response of the job, when it has ended.
  async ended() {
    while (!this.response) {
      if (this.#place.shows === "document" && hasEnded(this.status)) {
        const resource = this.status.resourceLocation;
        const named = typeof resource === "string";
        const url = named ? joined(resource, this.#last.url) : this.#result;
        if (hasFailed(this.status)) throw await this.noResponse();
        if (!url) return this.#last;
        this.#place = { url, shows: "response" };
      }
      await this.#poll(this.#place, this.#options.wait);
    }
    return this.response;
  }

  async cancelled() {
    if (!this.#cancel && this.#place.shows === "either") await this.#poll(this.#place);
    if (this.gone) throw await this.noResponse();
    if (this.response || hasEnded(this.status)) return this.status;
    const alarm = new Alarm(ANSWER, this.#options.signal);
    const response = await this.#askedToStop({ signal: alarm.signal });
    const document = await documentOf(response);
    alarm.off();
    if (response.status === 409) {
      await this.#poll(this.#monitor ?? this.#place); // it had ended before
      return this.status;
    }
    if (response.status >= 300) {
      const why = sentenceOf(document, `HTTP ${response.status}`);
      throw this.#error(FollowError, `the job could not be cancelled: ${why}`, { response });
    }
    return document.status ? document : { status: "canceling" };
  }

  // Cancels for somebody who has left, with their page perhaps.
  async abandon() {
    try {
      await this.#askedToStop({ keepalive: true, signal: AbortSignal.timeout(10_000) });
    } catch (error) {
      this.#options.onTrouble?.(error);
    }
  }

  // Whether what has come says nothing of how the job has ended.
  get gone() {
    const { response } = this;
    if (!response || response.headers.has("job-status")) return false;
    return GONE.has(response.status) || this.#from?.shows === "document";
  }

  async noResponse() {
    const { response, status } = this;
    if (!response) return this.#error(NoResponse, sentenceOf(status, "the job has failed"));
    const why = sentenceOf(await documentOf(response), `HTTP ${response.status}`);
    return this.#error(NoResponse, why, { response });
  }

  // --- what is known of it ---------------------------------------------------------------------

  async #given(job) {
    const alarm = new Alarm(this.#left, this.#options.signal);
    try {
      return await Promise.race([job, alarm.rung]);
    } catch (error) {
      if (this.#options.cancel && this.#options.signal?.aborted) this.#orphaned(job);
      if (alarm.late) throw this.#error(DeadlineExceeded, "there was no answer in time");
      throw error;
    } finally {
      alarm.off();
    }
  }

  // Cancels what becomes of a request that nobody waits for any more.
  async #orphaned(job) {
    try {
      if (await this.#accepted(await job)) await this.abandon();
    } catch (error) {
      this.#options.onTrouble?.(error); // it has become no job that is known
    }
  }

  // Takes from a 202 what it says of a job; whether it does.
  async #accepted(response) {
    if (response.status !== 202) return false;
    const where = located(response);
    const operation = joined(field(response, "operation-location"), response.url);
    if (!where) {
      if (response.type !== "cors") return false;
      const message = "the 202 has no Location that this page may read: the server's CORS policy " +
        "has to name it in Access-Control-Expose-Headers";
      throw this.#error(FollowError, message, { response });
    }
    const document = await documentOf(response).catch(() => ({})); // its fields are enough
    if (operation === undefined || linksOf(document).result) {
      this.#settle({ url: where, shows: "response" }, response.url);
    } else {
      this.#settle({ url: operation, shows: "document" }, response.url);
      this.#result = joined(field(response, "location"), response.url);
    }
    this.#learn(document, response);
    return true;
  }

  #settle(place, asked = place.url) {
    [this.#place, this.#origin] = [place, new URL(asked).origin];
  }

  #learn(document, response) {
    const moved = response?.status === 202 ? located(response) : undefined;
    const base = response?.url || this.#place.url;
    if (this.#place.shows === "either") {
      const shows = response.status === 202 ? "response" : "document";
      this.#place = { url: moved ?? base, shows };
    } else if (moved && this.#place.shows === "response") {
      this.#place = { url: moved, shows: "response" };
    }
    const named = Object.entries(linksOf(document)).filter(([, link]) => typeof link === "string");
    const links = Object.fromEntries(named.map(([name, link]) => [name, joined(link, base)]));
    if (links.result) {
      this.#place = { url: links.result, shows: "response" };
      this.#prompt = true; // our wire says so
      if (links.self) this.#monitor = { url: links.self, shows: "document" };
    }
    if (links.cancel) this.#cancel = links.cancel;
    if (links.events) this.#events = links.events;
    if (/(^|,)\s*wait\b/i.test(field(response, "preference-applied") ?? "")) this.#prompt = true;
    const unsaid = !document.status || hasEnded(document);
    if (response?.status === 202 && unsaid) document = { ...document, status: "running" };
    [this.status, this.#last] = [document, response];
    const { retry_after: again } = document; // to be read where the field is not
    this.#again = retryAfter(response) ?? (again > 0 ? Math.max(1, again) : undefined);
  }

  // --- how it is asked for ---------------------------------------------------------------------

  async #poll(place, wait = 0) {
    await this.#pass(this.#pauseBefore());
    const { response, document } = await this.#asked(place, wait);
    this.#from = place;
    if (document) return this.#learn(document, response);
    [this.response, this.status] = [response, outcomeOf(response)];
  }

  // Asks at a place, through whatever passes: its answer, and the document if it is not the end.
  async #asked(place, wait) {
    const since = now();
    for (let prefers = wait; ; ) {
      const begun = now();
      const seconds = this.#mayPrefer === false ? 0 : Math.floor(Math.min(prefers, this.#left));
      const alarm = new Alarm(Math.min(this.#left, ANSWER + seconds), this.#options.signal);
      let said, what, cause;
      try {
        const headers = seconds >= 1 ? { prefer: `wait=${seconds}` } : {};
        const response = await this.#sent(place.url, { headers, signal: alarm.signal });
        if (wait >= 1 && isForeign(place.url)) this.#mayPrefer ??= seconds >= 1;
        if (!passes(response)) {
          this.#tell(null);
          this.#took = seconds >= 1 ? now() - begun : Infinity;
          if (isFinal(place, response)) return { response };
          const document = await documentOf(response);
          alarm.off();
          return { response, document: stands(place, response, document) ? document : undefined };
        }
        said = retryAfter(response);
        what = sentenceOf(await documentOf(response), `HTTP ${response.status}`);
        alarm.off();
      } catch (error) {
        this.#throwUnlessPassing(error, alarm);
        if (seconds >= 1 && isForeign(place.url) && this.#mayPrefer === undefined) {
          prefers = 0; // its CORS policy may know no `Prefer`
          continue;
        }
        [what, cause] = [error.message, error];
      } finally {
        alarm.stop();
      }
      if (this.#left > 0) this.#tell(this.#error(FollowError, what, { cause }));
      if (now() - since >= PATIENCE) {
        const message = `its server has not answered for two minutes (${what})`;
        throw this.#error(Unreachable, message, { cause });
      }
      await this.#pass(said ?? this.#backoff());
      prefers = wait;
    }
  }

  // What one stream of events says; silence, and whatever goes wrong, is its end.
  async *#streamed() {
    const alarm = new Alarm(Math.min(this.#left, FIRST_EVENT), this.#options.signal);
    let [heard, text, pause] = [false, "", 3];
    try {
      const headers = { accept: "text/event-stream" };
      const response = await this.#sent(this.#events, { headers, signal: alarm.signal });
      const isStream = /^text\/event-stream\b/i.test(field(response, "content-type") ?? "");
      if (response.status !== 200 || !isStream) return;
      const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let piece; !(piece = await pieces.read()).done && !hasEnded(this.status); ) {
        const frames = (text + piece.value).split(/\r\n\r\n|\n\n|\r\r/);
        text = frames.pop();
        for (const frame of frames) {
          const [retry] = valuesOf(frame, "retry");
          if (retry > 0) pause = Math.min(LONGEST_PAUSE, Math.max(0.1, retry / 1000));
          const document = parsed(valuesOf(frame, "data").join("\n"));
          if (!document.status) continue;
          heard = true;
          this.#tell(null);
          this.#learn(document);
          yield document;
        }
        alarm.set(Math.min(this.#left, heard ? SILENCE : FIRST_EVENT));
      }
    } catch (error) {
      this.#throwUnlessPassing(error, alarm);
    } finally {
      alarm.off();
      alarm.ring(); // nothing more is read
      if (!heard) this.#deaf = now() + DEAF;
      this.#took = Infinity;
    }
    if (!hasEnded(this.status)) await this.#pass(heard ? pause : 0);
  }

  #sent(url, init) {
    const send = this.#options.fetch ?? fetch;
    const headers = new Headers(this.#isOurs(url) ? this.#options.headers : undefined);
    for (const [name, value] of Object.entries(init.headers)) headers.set(name, value);
    const credentials = this.#isOurs(url) ? this.#options.credentials : "omit";
    return send(url, { ...init, headers, credentials, cache: "no-store" });
  }

  #askedToStop(init) {
    if (!this.#cancel) return this.#sent(this.#place.url, { ...init, method: "DELETE", headers: {} });
    // What a page of another origin cannot send unasked.
    const headers = { "content-type": "application/json" };
    return this.#sent(this.#cancel, { ...init, method: "POST", headers });
  }

  #isOurs(url) {
    return new URL(url).origin === this.#origin;
  }

  // A `TypeError` is what `fetch` has for all that goes wrong on the network.
  #throwUnlessPassing(error, alarm) {
    alarm.off();
    this.#options.signal?.throwIfAborted();
    if (!alarm.late && !(error instanceof TypeError)) throw error;
  }

  // --- time ------------------------------------------------------------------------------------

  get #left() {
    return this.#ends - now();
  }

  #pauseBefore() {
    if (!this.status.status || hasEnded(this.status)) return 0;
    const waited = this.#prompt && this.#options.wait >= 1 && this.#mayPrefer !== false;
    if (waited && this.#took >= SHORT) return 0;
    return this.#again ?? this.#backoff();
  }

  #backoff() {
    const pause = this.#pause;
    this.#pause = Math.min(2 * pause, LONGEST_PAUSE);
    return pause * (0.75 + Math.random() / 2);
  }

  async #pass(seconds) {
    const left = this.#left;
    const alarm = new Alarm(Infinity, this.#options.signal);
    const passed = new Promise((resume) => alarm.set(Math.min(seconds, left), resume));
    await Promise.race([passed, alarm.rung]).finally(() => alarm.off());
    if (left > 0 && seconds <= left) return;
    const message = `the job has not ended within ${this.#options.deadline} seconds`;
    throw this.#error(DeadlineExceeded, message);
  }

  #tell(error) {
    if (error || this.#troubled) this.#options.onTrouble?.(error);
    this.#troubled = error !== null;
  }

  #error(Kind, message, more) {
    return new Kind(message, { statusUrl: this.#place?.url, ...more });
  }
}

// Ends what takes too long; and, by the signal of whoever waits, what they do not want any more.
class Alarm {
  late = false;

  #controller = new AbortController();
  #timer;
  #given;
  #leave;

  constructor(seconds, given) {
    this.#given = given;
    this.#leave = () => this.#controller.abort(given.reason);
    given?.addEventListener("abort", this.#leave);
    if (given?.aborted) this.#leave();
    this.set(seconds);
  }

  get signal() {
    return this.#controller.signal;
  }

  get rung() {
    return new Promise((_, reject) => {
      if (this.signal.aborted) reject(this.signal.reason);
      this.signal.addEventListener("abort", () => reject(this.signal.reason));
    });
  }

  set(seconds, then = () => this.ring()) {
    clearTimeout(this.#timer);
    if (seconds < Infinity) this.#timer = setTimeout(then, Math.min(1000 * seconds, 2 ** 31 - 1));
  }

  ring() {
    this.late = true;
    this.#controller.abort(new TypeError("no answer came in time"));
  }

  // The rest of a response may take its time.
  stop() {
    clearTimeout(this.#timer);
  }

  off() {
    this.stop();
    this.#given?.removeEventListener("abort", this.#leave);
  }
}

// --- what servers say of a job -----------------------------------------------------------------

const now = () => performance.now() / 1000;
const field = (response, name) => response?.headers.get(name) ?? undefined;
const word = (document) => String(document.status ?? "").toLowerCase();
const hasEnded = (document) => ENDED.has(word(document));
const hasFailed = (document) => FAILED.has(word(document));
const passes = (response) => PASSING.has(response.status) && !response.headers.has("job-status");

function resolved(url, base) {
  return url === undefined ? undefined : new URL(url, base || globalThis.location?.href).href;
}

// Where a server's link leads; nowhere if that is no URL of http or https.
function joined(link, base) {
  try {
    const url = resolved(link, base);
    return /^https?:/.test(url) ? url : undefined;
  } catch {
    return undefined;
  }
}

function isForeign(url) {
  const here = globalThis.location?.origin;
  return here !== undefined && new URL(url).origin !== here;
}

// `Location` is what most servers say, `Operation-Location` Azure's, and `Content-Location` FHIR's.
function located(response) {
  const names = ["location", "operation-location", "content-location"];
  const urls = names.map((name) => joined(field(response, name), response.url));
  return urls.find((url) => url !== undefined);
}

// Whether an answer is the job's response, to be seen without its body.
function isFinal({ shows }, { status, headers }) {
  if (status === 202 || (status === 200 && shows === "document")) return false;
  const isJson = (headers.get("content-type") ?? "").includes("json");
  return !(status === 200 && shows === "either" && isJson);
}

// Whether a document that an answer brought shows how the job stands, and is no result.
function stands({ shows }, response, document) {
  if (!document || response.status === 202) return Boolean(document);
  if (shows === "document") return "status" in document;
  if (shows === "response") return false;
  if (linksOf(document).result && "job_id" in document) return true;
  if (response.headers.has("job-status")) return false;
  return UNFINISHED.has(word(document)) || (hasEnded(document) && "resourceLocation" in document);
}

// Seconds from 1 to an hour. A date is compared with the server's own, so that clocks may differ.
function retryAfter(response) {
  const value = field(response, "retry-after")?.trim() ?? "";
  const date = Date.parse(field(response, "date")) || Date.now();
  const seconds = /^\d+$/.test(value) ? Number(value) : (moment(value) - date) / 1000;
  return Number.isNaN(seconds) ? undefined : Math.min(3600, Math.max(1, seconds));
}

// The three forms of RFC 9110, 5.6.7; `Date.parse` takes much else for a date.
function moment(date) {
  if (!/^[A-Z][a-z]{2,8},? .*\d\d:\d\d:\d\d/.test(date)) return NaN;
  return Date.parse(date.endsWith("GMT") ? date : `${date} GMT`);
}

// The JSON object that a body is. Whoever gets the response can still read it.
async function documentOf(response) {
  return response.bodyUsed ? {} : parsed(await response.clone().text());
}

function parsed(text) {
  try {
    const document = JSON.parse(text);
    return document !== null && typeof document === "object" ? document : {};
  } catch {
    return {};
  }
}

function linksOf(document) {
  return typeof document?.links === "object" ? (document.links ?? {}) : {};
}

function outcomeOf(response) {
  const ok = response.status > 0 && response.status < 400;
  const status = field(response, "job-status") ?? (ok ? "succeeded" : "failed");
  const shown = { status: response.status, content_type: field(response, "content-type") ?? null };
  return { status, response: shown };
}

// Of a Server-Sent Event.
function valuesOf(frame, name) {
  const lines = frame.split(/\r\n|\n|\r/).filter((line) => line.startsWith(`${name}:`));
  return lines.map((line) => line.slice(name.length + 1));
}

// What a problem (RFC 9457) or an error says to people.
function sentenceOf({ error, detail, title }, otherwise) {
  return String(error?.message ?? detail ?? title ?? otherwise);
}
