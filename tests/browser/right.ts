// A correct program that uses every export of the client; `tsc --strict` compiles it without an error.
import {
  ApiError, api, create, onSignedOut, pages, register, signIn, signOut,
  type Abortable, type ApiOptions, type Credentials, type FieldError, type NewTask, type Registration,
  type Task, type TaskChange, type User,
} from "./tasks-api.js";

globalThis.TASKS_API = "https://api.example.com";
const cancel: Abortable = { signal: AbortSignal.timeout(5000) };
const credentials: Credentials = { email: "ada@example.com", password: "correct horse battery" };
const registration: Registration = { ...credentials, name: null };
const milk: NewTask = { title: "Buy milk" };
const change: TaskChange = { completed: true, description: null };
const options: ApiOptions = { ...cancel, method: "PATCH", body: change, headers: { "If-Match": "*" } };

export async function use(): Promise<string | null> {
  const stop: () => boolean = onSignedOut(() => undefined);
  const registered: User | null = await register(registration, cancel);
  const user: User = await signIn(credentials);
  const task: Task = await create(milk, { key: "8e03978e", ...cancel });
  const response: Response = await api(`/tasks/${task.id.toFixed()}`, options);
  for await (const page of pages("/tasks?limit=50", cancel)) page.map((each) => each.title.trim());
  for await (const page of pages<{ id: string; current: boolean }>("/auth/sessions")) page.map(({ id }) => id);
  await signOut(cancel);
  stop();
  return registered?.name ?? user.email ?? response.headers.get("ETag");
}

export function explain(error: unknown): string {
  if (!(error instanceof ApiError)) throw error;
  const wrong = error.fields.map((each: FieldError) => `${each.field}: ${each.message}`);
  return error.isOffline ? "offline" : [error.status, error.code, error.requestId, error.message, ...wrong].join();
}
