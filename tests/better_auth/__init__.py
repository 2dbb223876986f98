"""A Better Auth server for tests, as a Next.js front end would run it, and a fake token server."""
