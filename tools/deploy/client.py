#!/usr/bin/env python3
"""Four dresses from `engine serve`, with nothing but the standard library: client.py [http://localhost:7860]"""
import json, sys, time, urllib.request

server = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860"
asked = json.dumps({"class": "Dress", "count": 4, "seed": 7, "steps": 20}).encode()
job = json.load(urllib.request.urlopen(urllib.request.Request(f"{server}/v1/samples", asked, {"content-type": "application/json"})))
while job["status"] in ("queued", "drawing"):
    time.sleep(0.1)
    job = json.load(urllib.request.urlopen(f"{server}/v1/jobs/{job['id']}"))
for number, path in enumerate(job["images"]):
    open(f"dress-{number}.png", "wb").write(urllib.request.urlopen(server + path).read())
