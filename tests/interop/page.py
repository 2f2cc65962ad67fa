"""The worklist page in a real browser: who loses an exam is told, and stays told until they have seen it.

Chromium is driven by its debugging protocol over a pair of pipes, with nothing but the standard library.
Usage: page.py URL URL, of two sites with two waiting exams.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE, THERE = sys.argv[1:3]
PATIENCE_S = 40


class Browser:
    def __init__(self, profile):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def pipes():
            os.dup2(os.dup(theirs_in), 103)
            os.dup2(os.dup(theirs_out), 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        command = ["/usr/bin/chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe",
                   f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, start_new_session=True, **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.incoming, self.ids, self.rest = ours_out, ours_in, itertools.count(1), b""
        target = self.ask("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        attach = {"targetId": target, "flatten": True}
        self.session = self.ask("Target.attachToTarget", attach, None)["sessionId"]

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def message(self):
        while b"\0" not in self.rest:
            more = os.read(self.incoming, 1 << 16)
            if not more:
                raise SystemExit("the browser ended")
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def ask(self, method, params, session="own"):
        number = next(self.ids)
        asked = {"id": number, "method": method, "params": params}
        if session:
            asked["sessionId"] = self.session
        os.write(self.out, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]

    def value(self, script):
        result = self.ask("Runtime.evaluate", {"expression": script, "returnByValue": True})
        return result["result"].get("value")

    def until(self, what, script):
        deadline = time.monotonic() + PATIENCE_S
        while not self.value(script):
            if time.monotonic() > deadline:
                raise SystemExit(f"not in time: {what}\n{self.value('document.body.innerText')}")
            time.sleep(0.2)

    def go(self, path):
        self.value("window.gone = true")
        self.ask("Page.navigate", {"url": HERE + path})
        self.until(path, "!window.gone && document.readyState === 'complete' && !!document.getElementById('room')")


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def waiting():
    with urllib.request.urlopen(HERE + "/api/v1/exams?state=waiting&fresh=true") as answer:
        return [exam["id"] for exam in json.load(answer)["exams"]]


SHOWN = "!document.getElementById('claims-lost').hidden"
TEXT = "document.getElementById('claims-lost').innerText"


def main(browser):
    host = HERE.split("//")[1].split(":")[0]
    browser.ask("Network.setCookie", {"name": "reader", "value": "dr-a", "domain": host, "path": "/"})
    browser.go("/?lang=en")
    first, second = waiting()[:2]
    for exam in (first, second):
        post(f"{HERE}/api/v1/exams/{exam}/claim", {"user": "dr-a"})
        browser.until("the claim is shown", f"!!document.getElementById('report-{exam}')")
    assert not browser.value(SHOWN), "nothing was lost yet"
    print("ok nothing is said while nothing is lost")

    reason = "<b>dr-a</b> left"
    post(f"{THERE}/api/v1/exams/{first}/take-over", {"user": "dr-b", "reason": reason})
    browser.until("the banner", SHOWN)
    said = browser.value(TEXT)
    assert f"You no longer have exam {first}" in said and "dr-b, nantes" in said and reason in said, said
    assert not browser.value("!!document.querySelector('#claims-lost b')"), "a reason is a text"
    print("ok a take-over is told, with who and why")

    browser.go("/?lang=fr")
    assert browser.value(SHOWN) and f"Vous n’avez plus l’examen {first}" in browser.value(TEXT), browser.value(TEXT)
    print("ok it is still told on the next page, in its language")

    browser.ask("Page.navigate", {"url": "about:blank"})
    post(f"{THERE}/api/v1/exams/{second}/take-over", {"user": "dr-b", "reason": "again"})
    browser.go("/?lang=en")
    browser.until("both are told", f"{TEXT}.includes('exam {second}')")
    assert browser.value("document.querySelectorAll('#claims-lost li').length") == 2, browser.value(TEXT)
    print("ok what was lost between two pages is told, and nothing twice")

    browser.value("document.getElementById('claims-lost-seen').click()")
    assert not browser.value(SHOWN)
    browser.go("/?lang=en")
    time.sleep(2)
    assert not browser.value(SHOWN), "seen is seen"
    print("ok what was seen is told no more")

    post(f"{HERE}/api/v1/exams/{first}/take-over", {"user": "dr-c", "reason": "theirs"})
    time.sleep(2)
    assert not browser.value(SHOWN), "another reader's loss"
    print("ok what another reader loses is theirs")


# A process of the browser that outlives its parent for a moment still writes to the profile.
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    browser = Browser(profile)
    try:
        main(browser)
    finally:
        browser.end()
