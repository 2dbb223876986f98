// The configuration of Better Auth for tests: in memory, saved across a restart, one set of keys for all it signs.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { deserialize, serialize } from "node:v8";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { jwt } from "better-auth/plugins";

const STATE = "state";
const database = existsSync(STATE)
  ? deserialize(readFileSync(STATE))
  : { user: [], session: [], account: [], verification: [], jwks: [] };
const { JWT_ALGORITHM: alg } = process.env;

export const auth = betterAuth({
  database: memoryAdapter(database),
  emailAndPassword: { enabled: true },
  session: { cookieCache: { enabled: true, strategy: "jwt" } },
  plugins: [jwt({ sessionCookieCache: true, jwks: alg && { keyPairConfig: { alg } } })],
});

// The next token is signed by a new key; the old one stays published for its grace period, as in any rotation.
export const rotate = () => database.jwks.forEach((key) => { key.expiresAt = new Date(Date.now() - 1); });

process.on("SIGTERM", () => { writeFileSync(STATE, serialize(database)); process.exit(0); });
