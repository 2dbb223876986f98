/** The types of tasks-api.js, as the service's OpenAPI document has them. */
export interface User {
  id: string;
  email: string | null;
  email_verified: boolean;
  pending_email: string | null;
  name: string | null;
  created_at: string;
}
export interface Task {
  id: number;
  user_id: string;
  title: string;
  description: string | null;
  completed: boolean;
  created_at: string;
  updated_at: string;
}
export interface NewTask {
  /** 1 to 200 characters after trimming. */
  title: string;
  /** At most 1000 characters. */
  description?: string | null;
  completed?: boolean;
}
export interface Credentials {
  email: string;
  password: string;
}
export interface Registration extends Credentials {
  name?: string | null;
}
export interface FieldError {
  field: string;
  message: string;
  type: string;
}
export interface Abortable {
  signal?: AbortSignal;
}
export interface ApiOptions extends Abortable {
  method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Sent as JSON. */
  body?: unknown;
  headers?: Record<string, string>;
}

/** What the service refused, or that it could not be reached. */
export class ApiError extends Error {
  /** The HTTP status; 0 when no answer came. */
  readonly status: number;
  /** The service's slug; `offline` when no answer came, `unknown` when something else answered. */
  readonly code: string;
  readonly requestId: string | null;
  readonly fields: FieldError[];
  readonly isOffline: boolean;
}

/** Create an account and sign in; null where the email has to be verified first. */
export function register(fields: Registration, options?: Abortable): Promise<User | null>;
/** Sign in by a cookie session; the access token is kept in memory alone. */
export function signIn(fields: Credentials, options?: Abortable): Promise<User>;
/** End the session, in all tabs. */
export function signOut(options?: Abortable): Promise<void>;
/** Send a request as the signed-in user; after a 401 it is sent once more with a fresh token. */
export function api(path: string, options?: ApiOptions): Promise<Response>;
/** Yield the pages of a list, one after the other. */
export function pages<T = Task>(path: string, options?: Abortable): AsyncGenerator<T[], void, undefined>;
/** Create a task once, although it may be sent twice; `key` repeats an earlier call. */
export function create(task: NewTask, options?: Abortable & { key?: string }): Promise<Task>;
/** Call `listener` when the session ends, here, in another tab or by the service; the result stops that. */
export function onSignedOut(listener: () => void): () => boolean;
