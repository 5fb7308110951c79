# ruff: noqa: INP001, S310
"""What `helm test` runs: one real completion, whole and streamed. Standard library only."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["URL"]
KEY = os.environ.get("API_KEY", "")
MODEL = os.environ["MODEL"]
PROMPT = os.environ["PROMPT"]
DEADLINE = time.monotonic() + float(os.environ["TIMEOUT_S"])


def call(path, body=None, key=KEY):
    """Return the open response; HTTP errors are raised."""
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data=data, headers=headers)
    return urllib.request.urlopen(request, timeout=max(1.0, DEADLINE - time.monotonic()))


def wait_until_ready():
    """Ask /ready until it says yes."""
    while True:
        try:
            return json.load(call("/ready"))
        except (OSError, ValueError) as error:
            if time.monotonic() > DEADLINE:
                sys.exit(f"{URL}/ready did not answer 200 in time: {error}")
            time.sleep(1)


def refused_without_key():
    """Return whether the API asks for a key."""
    try:
        call("/v1/models", key="")
    except urllib.error.HTTPError as error:
        return error.code == 401
    return False


def streamed(body):
    """Return the text of a streamed completion that came to its proper end."""
    text, ended = "", False
    for line in call("/v1/chat/completions", {**body, "stream": True}):
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            ended = True
        elif data.startswith("{"):
            event = json.loads(data)
            if "error" in event:
                sys.exit(f"the stream broke: {event['error']}")
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    if not ended:
        sys.exit("the stream ended without [DONE]")
    return text


ready = wait_until_ready()
if os.environ["LOCKED"]:
    if not refused_without_key():
        sys.exit("the server has API keys, but answered a request without one")
    print("a request without an API key is refused with 401")
    if not KEY:
        print("no completion was tried: test.apiKeySecret names no Secret with a key")
        sys.exit()
messages = [{"role": "user", "content": PROMPT}]
ask = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0}
answer = json.load(call("/v1/chat/completions", ask))
(choice,) = answer["choices"]
if answer["usage"]["completion_tokens"] < 1 or choice["finish_reason"] not in ("stop", "length"):
    sys.exit(f"this is no completion: {answer}")
streamed(ask)
print(f"{answer['model']} was asked: {PROMPT}")
print(f"{answer['model']} answered, whole and streamed: {choice['message']['content']!r}")
