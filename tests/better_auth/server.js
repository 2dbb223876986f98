// Serves the Better Auth of `auth.js` on loopback, and routes that stand for the own code of a Next.js app.
import { createServer } from "node:http";
import { toNodeHandler } from "better-auth/node";
import * as own from "./auth.js";

const authHandler = toNodeHandler(own.auth);

const appRoutes = {
  "POST /rotate": async () => new Response(own.rotate()),
  // The README's `lib/tasks.js`, called as a server action calls it: with the headers of the browser's request.
  "POST /action": async ({ headers }) => {
    const { tasks } = await import("./tasks.js");
    const init = { method: "POST", body: JSON.stringify({ title: "From a server action" }) };
    return tasks(new Headers({ cookie: headers.cookie ?? "" }), "", init);
  },
};

createServer(async (request, response) => {
  const route = appRoutes[`${request.method} ${request.url}`];
  if (!route) return authHandler(request, response);
  const answer = await route(request);
  response.writeHead(answer.status, { "Content-Type": "application/json" }).end(await answer.text());
}).listen(Number(process.env.PORT), "127.0.0.1");
