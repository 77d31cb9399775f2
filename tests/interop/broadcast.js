// A stock `ws` server as people write it: greets with a text, sends everything to everybody, the sender included.
// Each frame that comes is one line on stdout.
//   node broadcast.js PORT CERT KEY
"use strict";
const { readFileSync } = require("node:fs");
const https = require("node:https");
const { WebSocketServer, WebSocket } = require("ws");

const [port, cert, key] = process.argv.slice(2);
const server = https.createServer({ cert: readFileSync(cert), key: readFileSync(key) });
const sockets = new WebSocketServer({ server });

sockets.on("connection", (socket) => {
  socket.send("Welcome to the broadcast server!");
  socket.on("error", (error) => console.error(error.message));
  socket.on("message", (frame, binary) => {
    console.log(frame.toString());
    for (const other of sockets.clients) {
      if (other.readyState === WebSocket.OPEN) other.send(frame, { binary });
    }
  });
});
server.listen(Number(port), "127.0.0.1", () => console.log("listening"));
