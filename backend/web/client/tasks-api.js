/** The Tasks API for a page in a browser; tasks-api.d.ts describes each export. */
const API = new URL(/* @vite-ignore */ globalThis.TASKS_API ?? "..", import.meta.url).href.replace(/\/*$/, "/");
const SIGNED_IN = `tasks-api signed in at ${API}`; // a mark without a secret, which all tabs see
const LOCK = `tasks-api refresh at ${API}`;
const listeners = new Set();
const tabs = new BroadcastChannel(LOCK);
let accessToken = null;
let userId = null; // whose the token is

export class ApiError extends Error {
  constructor(body, cause) {
    super(body.detail, { cause });
    this.name = "ApiError";
    this.status = body.status_code;
    this.code = body.code;
    this.requestId = body.request_id ?? null;
    this.fields = body.errors ?? [];
  }
  /** Whether no answer came: the request may or may not have arrived. */
  get isOffline() {
    return this.code === "offline";
  }
}

/** Without an answer, or with half of one, the service was not reached; an abort stays what it is. */
function orOffline(promise, signal) {
  return promise.catch((error) => {
    if (signal?.aborted) throw error;
    throw new ApiError({ status_code: 0, code: "offline", detail: "The service cannot be reached" }, error);
  });
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}, token = null) {
  const sent = new Headers(headers);
  if (body !== undefined) sent.set("Content-Type", "application/json");
  if (token) sent.set("Authorization", `Bearer ${token}`);
  const init = { method, headers: sent, signal, credentials: "include", body: JSON.stringify(body) };
  const base = new URL(API); // behind a proxy it may have a path, which links already begin with
  const isBelow = path.startsWith("/") && !path.startsWith(base.pathname);
  const url = new URL(isBelow ? base.pathname + path.slice(1) : path, base);
  if (url.origin !== base.origin) throw new TypeError(`${path} is not an address of ${API}`);
  const response = await orOffline(fetch(url, init), signal);
  if (response.ok || response.status === 304) return response;
  const unknown = { status_code: response.status, code: "unknown", detail: response.statusText };
  throw new ApiError(await response.json().catch(() => unknown));
}

async function enter(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  if (response.status === 202) return null; // the email has to be verified first
  const answer = await orOffline(response.json(), signal);
  become(answer.user.id, answer.access_token);
  tabs.postMessage(userId);
  return answer.user;
}

function become(id, token) {
  const before = userId ?? localStorage.getItem(SIGNED_IN);
  [userId, accessToken] = [id, token];
  if (id) localStorage.setItem(SIGNED_IN, id);
  else localStorage.removeItem(SIGNED_IN);
  if (before && before !== id) tellSignedOut();
}

function tellSignedOut() {
  for (const listener of listeners) listener();
}

/** Another tab signed out, or signed in: where that is somebody else, the cookie is theirs now. */
tabs.onmessage = ({ data: id }) => {
  if (!userId || userId === id) return;
  userId = accessToken = null;
  tellSignedOut();
};

/** Of all tabs one refreshes at a time: each spends the token that the one before left in the cookie. */
function refresh(spent, signal) {
  signal?.throwIfAborted();
  const refreshed = navigator.locks.request(LOCK, async () => {
    if (accessToken !== spent) return; // another request of this tab was first
    try {
      await enter("/auth/refresh", {});
    } catch (error) {
      if (error.status === 401) become(null, null);
      throw error;
    }
  });
  // Whoever waits for it may stop; the refresh itself goes on, since others wait as well.
  const aborted = new Promise((_, reject) => {
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  return Promise.race([refreshed, aborted]);
}

const cookie = (fields) => ({ session: "cookie", ...fields });
export const register = (fields, { signal } = {}) => enter("/auth/register", cookie(fields), signal);
export const signIn = (fields, { signal } = {}) => enter("/auth/login", cookie(fields), signal);

export async function signOut({ signal } = {}) {
  try {
    await send("/auth/logout", { method: "POST", signal }, accessToken);
  } catch (error) {
    if (error.status !== 401) throw error; // a 401 says that the session is over already
  }
  become(null, null);
  tabs.postMessage(null);
}

export async function api(path, options = {}) {
  if (!accessToken && localStorage.getItem(SIGNED_IN)) await refresh(null, options.signal);
  const token = accessToken;
  try {
    return await send(path, options, token);
  } catch (error) {
    if (!token || error.status !== 401) throw error;
    await refresh(token, options.signal);
    return send(path, options, accessToken);
  }
}

export async function* pages(path, { signal } = {}) {
  for (let next = path; next; ) {
    const response = await api(next, { signal });
    yield await orOffline(response.json(), signal);
    next = response.headers.get("Link")?.match(/<([^>]+)>; rel="next"/)?.[1];
  }
}

export async function create(task, { key = crypto.randomUUID(), signal } = {}) {
  const options = { method: "POST", body: task, headers: { "Idempotency-Key": key }, signal };
  const once = async () => orOffline((await api("/tasks", options)).json(), signal);
  // The key lets the service know a repetition, so that a lost answer makes no second task.
  return once().catch((error) => {
    if (error.code !== "offline") throw error;
    return once();
  });
}

export function onSignedOut(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
