// A page that shows what the hub hears, in plain JavaScript: live.html?hub=wss://HOST/v1/live&token=TOKEN
"use strict";
const query = new URLSearchParams(location.search);
const show = (id, text) => { document.getElementById(id).textContent = text; };
const base64url = (text) => btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

const HEARTBEAT_MS = 1000;
const SILENCE_MS = 3 * HEARTBEAT_MS;
const BACKOFF_MS = { first: 200, most: 5000 };
const ROWS = 20;
let socket = null, backoff = BACKOFF_MS.first, heard = 0;
let records = 0, connections = 0, pongs = 0;

function connect() {
  const bearer = `base64url.bearer.fieldgate.${base64url(query.get("token"))}`;
  socket = new WebSocket(query.get("hub"), ["fieldgate.live.v1", bearer]);
  socket.onopen = () => {
    heard = Date.now();
    show("connections", ++connections);
    show("state", "here");
    send({ type: "subscribe", id: "all", gateway: "*" });
  };
  socket.onmessage = ({ data }) => {
    heard = Date.now();
    backoff = BACKOFF_MS.first;
    const message = JSON.parse(data);
    on[message.type]?.(message);
  };
  socket.onclose = () => {
    show("state", "away");
    setTimeout(connect, Math.random() * backoff);
    backoff = Math.min(2 * backoff, BACKOFF_MS.most);
  };
}

const on = {
  record({ gateway, device, ts, payload }) {
    show("records", ++records);
    const row = document.getElementById("latest").insertRow(0);
    for (const cell of [new Date(ts).toISOString(), gateway, device, JSON.stringify(payload)]) {
      row.insertCell().textContent = cell;
    }
    if (row.parentElement.rows.length > ROWS) row.parentElement.lastElementChild.remove();
  },
  pong() { show("pongs", ++pongs); },
  accepted({ id }) { show("status", `${id} sent`); },
  command_status({ state }) { show("status", state); },
  error({ code, message }) { show("status", `${code}: ${message}`); },
};

function send(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

// A browser's WebSocket can't ping and does not notice a dead link by itself.
setInterval(() => {
  if (socket.readyState !== WebSocket.OPEN) return;
  if (Date.now() - heard > SILENCE_MS) socket.close(); else send({ type: "ping" });
}, HEARTBEAT_MS);

document.getElementById("command").onsubmit = (event) => {
  event.preventDefault();
  const { gateway, device, name, params } = Object.fromEntries(new FormData(event.target));
  send({ type: "command", ref: "r1", gateway, device, name, params: JSON.parse(params) });
};
connect();
