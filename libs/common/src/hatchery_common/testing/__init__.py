"""Tools for tests: real servers, a fake gateway that passes the real one's suite, a recording bus."""
