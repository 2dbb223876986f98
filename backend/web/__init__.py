"""HTTP: the server, the middleware, the machinery of routes, and the pages for people and probes."""
