// Calls every operation of the service: `node program.js URL`. All types come from the OpenAPI document.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Schemas = components["schemas"];
declare const process: { argv: string[] };

// @ts-expect-error: a change is an object
export const aNumber: Schemas["TaskUpdate"] = 42;
// @ts-expect-error: a title is a string
export const aWrongTitle: Schemas["TaskUpdate"] = { title: 7 };
// @ts-expect-error: a task has a title
export const aTaskWithoutTitle: Schemas["TaskCreate"] = { completed: true };
// @ts-expect-error: an id is a number
export const aWrongId: Schemas["TaskRead"]["id"] = "1";

const api = createClient<paths>({ baseUrl: process.argv[2] });
let accessToken = "";
api.use({
  onRequest({ request }) {
    if (accessToken) request.headers.set("Authorization", `Bearer ${accessToken}`);
    return request;
  },
});

type Answer<T> = { data?: T; error?: Schemas["ErrorBody"]; response: Response };

function got<T>({ data, error, response }: Answer<T>, status = 200): T {
  check(response.status === status, `${response.url}: ${response.status} ${error?.detail}`);
  return data as T;
}

function refused({ error, response }: Answer<unknown>, code: string): void {
  check(error?.code === code, `${response.url}: ${error?.code} instead of ${code}`);
}

function check(isRight: boolean, message: string): void {
  if (!isRight) throw new Error(message);
}

function signedIn(tokens: Schemas["Tokens"]): string {
  accessToken = tokens.access_token;
  check(tokens.refresh_token !== undefined, "no refresh token");
  return tokens.refresh_token as string;
}

const account = { email: "typed@example.com", password: "correct horse battery" };
const form = { headers: { "Content-Type": "application/x-www-form-urlencoded" } };

async function signIn(): Promise<Schemas["UserRead"]> {
  const registered = got(await api.POST("/auth/register", { body: account }), 201);
  got(await api.POST("/auth/login", { body: account }));
  const grant: Schemas["TokenGrant"] = { username: account.email, password: account.password };
  const refresh_token = signedIn(got(await api.POST("/auth/token", { body: grant, ...form })));
  signedIn(got(await api.POST("/auth/refresh", { body: { refresh_token } })));
  return registered.user;
}

async function useAccount(): Promise<void> {
  check(got(await api.GET("/auth/me")).email === account.email, "another's profile");
  check(got(await api.PATCH("/auth/me", { body: { name: null } })).name === null, "a name");
  check(got(await api.GET("/auth/sessions")).length === 3, "sessions");
  got(await api.DELETE("/auth/sessions"), 204);
  const path = { session_id: "01a1f95c-de91-7602-9705-5b761cf48293" };
  refused(await api.DELETE("/auth/sessions/{session_id}", { params: { path } }), "session_not_found");
  const body = { current_password: account.password, new_password: account.password };
  signedIn(got(await api.POST("/auth/password", { body })));
}

async function useMail(): Promise<void> {
  const { email, password } = account;
  got(await api.POST("/auth/password/forgot", { body: { email } }), 202);
  got(await api.POST("/auth/email/verification", { body: { email } }), 202);
  got(await api.POST("/auth/email", { body: { new_email: "new@example.com", password } }), 202);
  got(await api.DELETE("/auth/email"), 204);
  const body = { token: "none of ours" };
  refused(await api.POST("/auth/email/verify", { body }), "token_invalid");
  refused(await api.POST("/auth/email/confirm", { body }), "token_invalid");
  const reset = { ...body, new_password: password };
  refused(await api.POST("/auth/password/reset", { body: reset }), "token_invalid");
}

async function keepTasks(): Promise<void> {
  const created = got(await api.POST("/tasks", { body: { title: "Buy milk", description: "Two litres" } }), 201);
  const params = { path: { task_id: created.id } };
  check(got(await api.GET("/tasks")).length === 1, "tasks");
  check(got(await api.GET("/tasks/{task_id}", { params })).title === "Buy milk", "another task");
  got(await api.PUT("/tasks/{task_id}", { params, body: { title: "Buy bread" } }));
  const cleared = got(await api.PATCH("/tasks/{task_id}", { params, body: { description: null } }));
  check(cleared.description === null && cleared.title === "Buy bread", "not cleared");
  check(got(await api.PATCH("/tasks/{task_id}/complete", { params })).completed, "not completed");
  got(await api.DELETE("/tasks/{task_id}", { params }), 204);
}

async function keepTasksOf(user_id: string): Promise<void> {
  const body: Schemas["TaskCreate"] = { title: "Buy milk" };
  const all = { path: { user_id } };
  const created = got(await api.POST("/api/{user_id}/tasks", { params: all, body }), 201);
  const params = { path: { user_id, task_id: created.id } };
  const query = { status: "pending", sort: "title", limit: 10 } as const;
  const found = got(await api.GET("/api/{user_id}/tasks", { params: { ...all, query } }));
  check(found.length === 1, "tasks of a user");
  check(!got(await api.GET("/api/{user_id}/tasks/{task_id}", { params })).completed, "completed");
  got(await api.PUT("/api/{user_id}/tasks/{task_id}", { params, body: { completed: false } }));
  got(await api.PATCH("/api/{user_id}/tasks/{task_id}", { params, body: { description: null } }));
  got(await api.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params }));
  got(await api.DELETE("/api/{user_id}/tasks/{task_id}", { params }), 204);
}

async function watch(): Promise<void> {
  check(got(await api.GET("/health")).status === "ok", "not alive");
  check(got(await api.GET("/health/ready")).status === "ok", "not ready");
  check(got(await api.GET("/metrics", { parseAs: "text" })).includes("http_requests_total"), "no metrics");
}

async function leave(): Promise<void> {
  got(await api.POST("/auth/logout"), 204);
  refused(await api.GET("/tasks"), "token_revoked");
  signedIn(got(await api.POST("/auth/login", { body: account })));
  got(await api.DELETE("/auth/me", { body: { password: account.password } }), 204);
}

const user = await signIn();
await useAccount();
await useMail();
await keepTasks();
await keepTasksOf(user.id);
await watch();
await leave();
