// A Fastify application with pg: schemas for requests and answers, prepared statements, cached tokens, no session check.
import jwt from "@fastify/jwt";
import Fastify from "fastify";
import pg from "pg";

pg.types.setTypeParser(pg.types.builtins.INT8, Number);
const pool = new pg.Pool({ max: 10 });
const app = Fastify();

const nullable = (type) => ({ anyOf: [type, { type: "null" }] });
const string = { type: "string" };
const task = {
  type: "object",
  properties: {
    id: { type: "integer" },
    user_id: string,
    title: string,
    description: nullable(string),
    completed: { type: "boolean" },
    created_at: { type: "string", format: "date-time" },
    updated_at: { type: "string", format: "date-time" },
  },
};
const title = { type: "string", minLength: 1, maxLength: 200 };
const description = nullable({ type: "string", maxLength: 1000 });
const completed = { type: "boolean" };
const params = { type: "object", properties: { id: { type: "integer", minimum: 1 } } };
const create = { type: "object", required: ["title"], properties: { title, description, completed } };
const update = { type: "object", properties: { title, description, completed } };

const columns = "id, user_id, title, description, completed, created_at, updated_at";
const own = `WHERE id = $1 AND user_id = $2 RETURNING ${columns}`;
const statement = (name, text) => async (...values) => (await pool.query({ name, text, values })).rows;
const list = statement("list", `SELECT ${columns} FROM tasks WHERE user_id = $1 ORDER BY created_at, id LIMIT 1000`);
const read = statement("read", `SELECT ${columns} FROM tasks WHERE id = $1 AND user_id = $2`);
const insert = statement(
  "insert",
  `INSERT INTO tasks (user_id, title, title_key, description) VALUES ($1, $2, $3, $4) RETURNING ${columns}`,
);
const change = statement("change", `UPDATE tasks SET title = $3, title_key = $4, updated_at = clock_timestamp() ${own}`);
const toggle = statement(
  "toggle",
  `UPDATE tasks SET completed = NOT completed, updated_at = clock_timestamp() ${own}`,
);

app.register(jwt, {
  secret: process.env.JWT_SECRET,
  verify: { cache: 4096, allowedAud: "tasks-api", allowedIss: "tasks-api" },
});
app.addHook("onRequest", (request) => request.jwtVerify());

const one = ([row], reply) => row ?? reply.code(404).send({ detail: "Task not found" });
app.after(() => {
  app.get("/tasks", { schema: { response: { 200: { type: "array", items: task } } } }, ({ user }) => list(user.sub));
  app.post("/tasks", { schema: { body: create, response: { 201: task } } }, async ({ user, body }, reply) => {
    const [row] = await insert(user.sub, body.title, body.title.toLowerCase(), body.description);
    return reply.code(201).send(row);
  });
  app.get("/tasks/:id", { schema: { params, response: { 200: task } } }, async ({ user, params }, reply) =>
    one(await read(params.id, user.sub), reply),
  );
  app.put("/tasks/:id", { schema: { params, body: update, response: { 200: task } } }, async (request, reply) => {
    const { user, params, body } = request;
    return one(await change(params.id, user.sub, body.title, body.title.toLowerCase()), reply);
  });
  app.patch("/tasks/:id/complete", { schema: { params, response: { 200: task } } }, async ({ user, params }, reply) =>
    one(await toggle(params.id, user.sub), reply),
  );
});

await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
