"""A small shop: answers its health check and says hello."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {"/": "Hello from the shop.\n", "/healthz": "ok\n", "/metrics": "shop_up 1\n"}


class Shop(BaseHTTPRequestHandler):
    """Answers every known path with a line of text."""

    def do_GET(self) -> None:
        """Answer one request."""
        text = ANSWERS.get(self.path)
        self.send_response(200 if text else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write((text or "unknown path\n").encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Shop).serve_forever()
