"""A managed hub in 60 lines of code, from PROTOCOL.md alone: python hub.py PORT CERT KEY STORE
Records are lines of STORE, synced before their ack, and on stdout; a line on stdin,
{"device","name","params","ttl_ms"}, becomes a command."""
import asyncio, json, os, ssl, sys, time
from websockets.asyncio.server import serve

port, cert, key, store = sys.argv[1:]
FINAL = ("succeeded", "failed", "rejected", "expired", "cancelled", "timed_out", "unknown")
following, gaps, commands, gateway = {}, set(), {}, None  # by (stream, epoch); commands by id
text = open(store, "rb").read() if os.path.exists(store) else b""
kept = open(store, "ab")
kept.truncate(text.rfind(b"\n") + 1)  # a torn last line was never acked
for line in map(json.loads, text[: text.rfind(b"\n") + 1].splitlines()):
    following[line["stream"], line["epoch"]] = line["next"]

async def send(**message):
    if gateway: await gateway.send(json.dumps(message))

async def send_command(until, **command):
    await send(**command, ttl_ms=max(0, int((until - time.monotonic()) * 1000)))

async def take(stream, epoch, start, lines):  # a line is a record, or a loss, and says what comes `next`
    here, expected = (stream, epoch), following.get((stream, epoch), 1)
    if start > expected:  # a hole: said once, until the expected number comes
        if here not in gaps: await send(type="error", code="gap", stream=stream, epoch=epoch, expected=expected)
        return gaps.add(here)
    gaps.discard(here)
    fresh = [{"stream": stream, "epoch": epoch, **line} for line in lines if line["next"] > expected]
    kept.write(b"".join(json.dumps(line).encode() + b"\n" for line in fresh))
    kept.flush(), os.fsync(kept.fileno())
    for line in fresh: print(json.dumps(line), flush=True)
    following[here] = fresh[-1]["next"] if fresh else expected
    window = {"records": 5000, "bytes": 1 << 20}
    await send(type="ack", stream=stream, epoch=epoch, acked=following[here] - 1, window=window)
    for status in (line.get("record", {}) for line in fresh):
        if status.get("kind") != "command_status" or status["id"] not in commands: continue
        if status["state"] in FINAL: del commands[status["id"]]
        else: commands[status["id"]]["state"] = {"n": status["n"], "state": status["state"]}

async def session(socket):
    global gateway
    gateway = socket
    async for message in socket:
        m = json.loads(message)
        if m["type"] == "data":
            lines = [{"next": m["seq"] + at + 1, "record": record} for at, record in enumerate(m["records"])]
            await take(m["stream"], m["epoch"], m["seq"], lines)
        elif m["type"] == "skip":
            lines = [{"next": m["to"], "from": m["from"], "reason": m["reason"]}]
            await take(m["stream"], m["epoch"], m["from"], lines)
        elif m["type"] == "hello":
            for h in m["streams"]: h["acked"] = following.setdefault((h["stream"], h["epoch"]), h["first"]) - 1
            await send(type="welcome", hub="hub.py", time=int(time.time() * 1000), streams=m["streams"])
            gaps.clear()
            for command in list(commands.values()): await send_command(**command)

async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    async with serve(session, "127.0.0.1", int(port), ssl=tls, subprotocols=["fieldgate.v1.json"]) as server:
        print("listening", flush=True)
        while asked := await asyncio.to_thread(sys.stdin.readline):
            id, asked = f"py-{time.time_ns()}", json.loads(asked)
            until = time.monotonic() + asked.pop("ttl_ms", 30000) / 1000
            commands[id] = {"type": "command", "id": id, "state": None, **asked, "until": until}
            await send_command(**commands[id])
        await server.serve_forever()

asyncio.run(main())
