"""A Better Auth server of the tests' own, as a Next.js front end would run it."""
