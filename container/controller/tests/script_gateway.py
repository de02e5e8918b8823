"""A gateway of forty lines: says live, then ready, and misbehaves on demand (variables FAKE_*)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

config = json.loads(Path(os.environ["OPENCLAW_CONFIG_PATH"]).read_text())
knob = os.environ.get
started = time.monotonic()
Path(os.environ["OPENCLAW_STATE_DIR"], "seen.json").write_text(
    json.dumps(
        {"argv": sys.argv, "environ": dict(os.environ), "uid": os.getuid(), "sid": os.getsid(0), "cwd": str(Path.cwd())}
    )
)
if text := knob("FAKE_SAY"):
    print(text, flush=True)
if path := knob("FAKE_CAT"):  # a variable's value would count as a secret itself
    print(Path(path).read_text(), flush=True)
print(f"header is {config['gateway']['auth']['trustedProxy']['userHeader']} key {knob('HATCHERY_LLM_KEY')}", flush=True)
if code := knob("FAKE_EXIT"):
    print("Invalid config at gateway: unknown key colour", flush=True)
    sys.exit(int(code))
if knob("FAKE_DEAF"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
sleeper = [sys.executable, "-c", "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"]
if knob("FAKE_CHILD"):  # one in our group, one that left it, both deaf
    pids = [subprocess.Popen(sleeper).pid, subprocess.Popen(sleeper, start_new_session=True).pid]
    Path(os.environ["OPENCLAW_STATE_DIR"], "children.json").write_text(json.dumps(pids))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        sulking = Path(os.environ["OPENCLAW_STATE_DIR"], "sulk").exists()
        ready = time.monotonic() - started > float(knob("FAKE_READY_AFTER", "0.1")) and not sulking
        ok = self.path == "/health" or (self.path == "/ready" and ready)
        body = json.dumps({"ready": ok, "failing": [] if ok else ["sidecars"]}).encode()
        self.send_response(200 if ok else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if crash := knob("FAKE_CRASH_AFTER"):
    threading.Timer(float(crash), lambda: os._exit(3)).start()
time.sleep(float(knob("FAKE_LISTEN_AFTER", "0")))
ThreadingHTTPServer(("127.0.0.1", config["gateway"]["port"]), Handler).serve_forever()
