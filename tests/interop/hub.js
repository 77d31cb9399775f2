// A managed hub in 60 lines of code, from PROTOCOL.md alone: node hub.js PORT CERT KEY STORE
// Records are lines of STORE, synced before their ack, and on stdout; a line on stdin,
// {"device","name","params","ttl_ms"}, becomes a command.
"use strict";
const fs = require("node:fs");
const { WebSocketServer } = require("ws");
const [port, cert, key, store] = process.argv.slice(2);
const FINAL = ["succeeded", "failed", "rejected", "expired", "cancelled", "timed_out", "unknown"];
const next = new Map(), gaps = new Set(), commands = new Map(); // by "stream epoch"; commands by id
let gateway = null;

const text = fs.existsSync(store) ? fs.readFileSync(store, "utf8") : "";
fs.writeFileSync(store, text.slice(0, text.lastIndexOf("\n") + 1)); // a torn last line was never acked
const file = fs.openSync(store, "a+");
for (const line of fs.readFileSync(store, "utf8").split("\n").filter(Boolean)) {
  const kept = JSON.parse(line);
  next.set(`${kept.stream} ${kept.epoch}`, kept.next);
}
const send = (message) => gateway?.send(JSON.stringify(message));
const sendCommand = ({ until, ...command }) => send({ ...command, ttl_ms: Math.max(0, until - Date.now()) });

function take(stream, epoch, from, lines) { // a line is a record, or a loss, and says what comes `next`
  const name = `${stream} ${epoch}`, expected = next.get(name) ?? 1;
  if (from > expected) { // a hole: said once, until the expected number comes
    if (!gaps.has(name)) send({ type: "error", code: "gap", stream, epoch, expected });
    return gaps.add(name);
  }
  const fresh = lines.filter((line) => line.next > expected).map((line) => ({ stream, epoch, ...line }));
  gaps.delete(name);
  fs.writeSync(file, fresh.map((line) => JSON.stringify(line) + "\n").join(""));
  fs.fsyncSync(file);
  for (const line of fresh) console.log(JSON.stringify(line));
  next.set(name, fresh.at(-1)?.next ?? expected);
  send({ type: "ack", stream, epoch, acked: next.get(name) - 1, window: { records: 5000, bytes: 1 << 20 } });
  for (const { kind, id, n, state } of fresh.flatMap((line) => line.record ?? [])) {
    if (kind !== "command_status" || !commands.has(id)) continue;
    if (FINAL.includes(state)) commands.delete(id); else commands.get(id).state = { n, state };
  }
}
const on = {
  hello({ streams }) {
    for (const { stream, epoch, first } of streams)
      if (!next.has(`${stream} ${epoch}`)) next.set(`${stream} ${epoch}`, first);
    send({ type: "welcome", session: `${Date.now()}`, hub: "hub.js", time: Date.now(), streams: streams.map(
      ({ stream, epoch }) => ({ stream, epoch, acked: next.get(`${stream} ${epoch}`) - 1 })) });
    gaps.clear(), commands.forEach(sendCommand);
  },
  data: ({ stream, epoch, seq, records }) =>
    take(stream, epoch, seq, records.map((record, at) => ({ next: seq + at + 1, record }))),
  skip: ({ stream, epoch, from, to, reason }) => take(stream, epoch, from, [{ next: to, from, reason }]),
};
const tls = { cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
const server = require("node:https").createServer(tls).listen(port, "127.0.0.1", () => console.log("listening"));
const handleProtocols = (offered) => offered.has("fieldgate.v1.json") && "fieldgate.v1.json";
new WebSocketServer({ server, handleProtocols }).on("connection", (socket) => socket.on("error", console.error).on(
  "message", (frame) => { gateway = socket; const message = JSON.parse(frame); on[message.type]?.(message); }));
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const { ttl_ms, ...asked } = JSON.parse(line), id = `js-${Date.now()}-${commands.size}`;
  commands.set(id, { type: "command", id, state: null, ...asked, until: Date.now() + (ttl_ms ?? 30000) });
  sendCommand(commands.get(id));
});
