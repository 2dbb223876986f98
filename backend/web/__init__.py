"""HTTP: the server, the middleware, the routes' machinery and the pages."""
