// `tsc --strict` finds an error in each line that ends with the comment `wrong`, and in no other.
import { ApiError, api, create, onSignedOut, pages, register, signIn } from "./tasks-api.js";
import { refresh } from "./tasks-api.js"; // wrong

const user = await signIn({ email: "ada@example.com", password: "correct horse battery" });
const task = await create({ title: "Buy milk" });
user.email.trim(); // wrong
user.refresh_token; // wrong
task.description.trim(); // wrong
task.completed = "yes"; // wrong
await create({ description: "Two litres" }); // wrong
await create({ title: 7 }); // wrong
await create({ title: "Buy milk" }, { key: 7 }); // wrong
await signIn({ email: "ada@example.com" }); // wrong
await signIn({ email: "ada@example.com", password: "correct horse battery", session: "token" }); // wrong
(await register({ email: "ada@example.com", password: "correct horse battery" })).id; // wrong
await register({ email: "ada@example.com", password: "correct horse battery", name: 7 }); // wrong
await api("/tasks", { method: "FETCH" }); // wrong
await api("/tasks", { signal: new AbortController() }); // wrong
onSignedOut("/sign-in"); // wrong
new ApiError(); // wrong
for await (const page of pages("/tasks")) page.name; // wrong
for (const page of pages("/tasks")) void page; // wrong
